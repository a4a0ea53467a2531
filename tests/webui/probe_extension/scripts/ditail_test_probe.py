"""Runs inside the WebUI under test: reports what Ditail has to leave as it was."""

import hashlib
import json
import sys

import torch
from fastapi import FastAPI
from modules import devices, processing, script_callbacks, sd_hijack, sd_models, sd_vae
from modules.models.sd3 import mmdit
from modules.shared import opts


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def state() -> dict:
    model = sd_models.model_data.sd_model
    modules = list(model.named_modules())
    return {
        "checkpoint": model.sd_checkpoint_info.name, "loaded_models": len(sd_models.model_data.loaded_sd_models),
        "vae": sd_vae.loaded_vae_file, "options": digest(json.dumps(opts.data, sort_keys=True, default=str).encode()),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for _, m in modules),
        "weights": digest(b"".join(p.detach().cpu().float().numpy().tobytes() for p in model.parameters())),
        "torch_rng": digest(torch.get_rng_state().numpy().tobytes()),
        "circular": sd_hijack.model_hijack.circular_enabled,
        "token_merging": getattr(model, "applied_token_merged_ratio", 0),
        "dtypes": [str(devices.dtype), str(devices.dtype_unet), str(devices.dtype_vae)],
        "patched": processing.images_tensor_to_samples.__module__,
        "callbacks": {category: len(found) for category, found in script_callbacks.enumerate_callbacks()},
        "grad": torch.is_grad_enabled(),
    }


class TinyMMDiT(mmdit.MMDiT):
    """SD3's architecture, for a yaml of ldm's kind."""

    def __init__(self, use_fp16=False, use_checkpoint=False, **kwargs):
        super().__init__(**kwargs)


def add_routes(_, app: FastAPI) -> None:
    app.add_api_route("/ditail-test/state", state, methods=["GET"])
    app.add_api_route("/ditail-test/attention", lambda: [o.title() for o in sd_hijack.optimizers], methods=["GET"])


sys.modules["ditail_test"].TinyMMDiT = TinyMMDiT
script_callbacks.on_app_started(add_routes)
