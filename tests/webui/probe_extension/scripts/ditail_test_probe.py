"""Runs inside the WebUI under test: reports what Ditail has to leave as it was, and makes the U-Net fail."""

import hashlib
import json

import torch
from fastapi import Body, FastAPI
from modules import devices, processing, script_callbacks, sd_hijack, sd_models, sd_vae, shared
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


def fail_at(call: int = Body(embed=True)) -> None:  # noqa: B008 (fastapi's way)
    """Make the U-Net's n-th call from now on run out of memory, once."""
    unet = sd_models.model_data.sd_model.model.diffusion_model
    calls = iter(range(1, call))

    def hook(module, args):
        if next(calls, None) is None:
            handle.remove()
            raise torch.cuda.OutOfMemoryError("no memory left, says the test")

    handle = unet.register_forward_pre_hook(hook)


def add_routes(_, app: FastAPI) -> None:
    app.add_api_route("/ditail-test/state", state, methods=["GET"])
    app.add_api_route("/ditail-test/fail", fail_at, methods=["POST"])
    app.add_api_route("/ditail-test/reload-ui", lambda: shared.state.request_restart(), methods=["POST"])


script_callbacks.on_app_started(add_routes)
