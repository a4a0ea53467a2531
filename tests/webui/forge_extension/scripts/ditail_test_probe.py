"""Runs inside the Forge under test: reports what Ditail has to leave as it was."""

import hashlib
import json

import torch
from backend import memory_management
from fastapi import FastAPI
from modules import processing, script_callbacks, sd_models, sd_samplers_kdiffusion
from modules.shared import opts


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def weights_of(model) -> bytes:
    """The weights without LoRAs: Forge takes those out of them only when it needs the model again."""
    before = model.lora_loader.backup if hasattr(model, "lora_loader") else {}
    return b"".join(before.get(name, weight).detach().cpu().float().numpy().tobytes()
                    for name, weight in model.named_parameters())


def state() -> dict:
    data = sd_models.model_data
    model, objects = data.sd_model, data.sd_model.forge_objects_original
    models = [objects.unet.model, objects.clip.patcher.model, objects.vae.patcher.model]
    modules = [module for one in models for module in one.modules()]
    others = [entry for entry in memory_management.current_loaded_models if entry.model.model not in models]
    return {
        "checkpoint": model.sd_checkpoint_info.name, "hash": data.forge_hash, "others_in_memory": len(others),
        "options": digest(json.dumps(opts.data, sort_keys=True, default=str).encode()),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
        "replaced": sum("forward" in m.__dict__ for m in modules),
        "weights": [digest(weights_of(one)) for one in models], "networks": model.current_lora_hash,
        "torch_rng": digest(torch.get_rng_state().numpy().tobytes()), "tiling": model.tiling_enabled,
        "sigmas": digest(objects.unet.model.predictor.sigmas.numpy().tobytes()),
        "regulation": objects.vae.patcher.model_options.get("model_vae_regulation") is not None,
        "patched": [processing.images_tensor_to_samples.__module__, sd_samplers_kdiffusion.sampling_prepare.__module__],
        "callbacks": {category: len(found) for category, found in script_callbacks.enumerate_callbacks()},
        "grad": torch.is_grad_enabled(),
    }


def add_routes(_, app: FastAPI) -> None:
    app.add_api_route("/ditail-test/state", state, methods=["GET"])


script_callbacks.on_app_started(add_routes)
