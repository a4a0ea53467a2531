"""Runs inside the WebUI under test: reports what Ditail has to leave as it was, and makes the U-Net fail."""

import hashlib
import json
import sys
from types import SimpleNamespace

import ldm.modules.diffusionmodules.openaimodel
import sgm.modules.diffusionmodules.openaimodel
import torch
from fastapi import Body, FastAPI
from modules import devices, processing, script_callbacks, sd_hijack, sd_models, sd_vae, shared
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


def options() -> dict:
    return {name: getattr(opts, name) for name, option in opts.data_labels.items() if not option.do_not_save}


def fail_at(call: int = Body(embed=True)) -> None:  # noqa: B008 (fastapi's way)
    """Make the U-Net's n-th call from now on run out of memory, once."""
    unet = sd_models.model_data.sd_model.model.diffusion_model
    calls = iter(range(1, call))

    def hook(module, args):
        if next(calls, None) is None:
            handle.remove()
            raise torch.cuda.OutOfMemoryError("no memory left, says the test")

    handle = unet.register_forward_pre_hook(hook)


def record_calls(unet_class: type) -> None:
    forward = unet_class.forward

    def recorded(self, x, timesteps=None, *args, **kwargs):
        sys.modules["ditail_test"].calls.append({"rows": len(x), "t": float(timesteps.flatten()[0]),
                                                 "job": shared.state.job})
        return forward(self, x, timesteps, *args, **kwargs)

    unet_class.forward = recorded


def calls() -> list[dict]:
    """The U-Net's calls since this was last asked."""
    seen, sys.modules["ditail_test"].calls = sys.modules["ditail_test"].calls, []
    return seen


class TinyMMDiT(mmdit.MMDiT):
    """SD3's architecture, for a yaml of ldm's kind."""

    def __init__(self, use_fp16=False, use_checkpoint=False, **kwargs):
        super().__init__(**kwargs)


def add_routes(_, app: FastAPI) -> None:
    app.add_api_route("/ditail-test/state", state, methods=["GET"])
    app.add_api_route("/ditail-test/attention", lambda: [o.title() for o in sd_hijack.optimizers], methods=["GET"])
    app.add_api_route("/ditail-test/options", options, methods=["GET"])
    app.add_api_route("/ditail-test/calls", calls, methods=["GET"])
    app.add_api_route("/ditail-test/fail", fail_at, methods=["POST"])
    app.add_api_route("/ditail-test/reload-ui", lambda: shared.state.request_restart(), methods=["POST"])


if "ditail_test" not in sys.modules:  # "Reload UI" runs this file again
    sys.modules["ditail_test"] = SimpleNamespace(TinyMMDiT=TinyMMDiT, calls=[])
    for package in (ldm, sgm):
        record_calls(package.modules.diffusionmodules.openaimodel.UNetModel)
script_callbacks.on_app_started(add_routes)
