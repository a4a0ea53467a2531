"""Runs inside the WebUI or Forge under test: records the U-Net's calls, makes one fail, gives the options."""

import sys
from types import SimpleNamespace

import torch
from fastapi import Body, FastAPI
from modules import script_callbacks, sd_models, shared
from modules.shared import opts

try:
    from backend.nn.unet import IntegratedUNet2DConditionModel
except ImportError:
    import ldm.modules.diffusionmodules.openaimodel
    import sgm.modules.diffusionmodules.openaimodel

    UNETS = [package.modules.diffusionmodules.openaimodel.UNetModel for package in (ldm, sgm)]
else:
    UNETS = [IntegratedUNet2DConditionModel]


def options() -> dict:
    return {name: getattr(opts, name) for name, option in opts.data_labels.items() if not option.do_not_save}


def fail_at(call: int = Body(embed=True)) -> None:  # noqa: B008 (fastapi's way)
    """Make the U-Net's n-th call from now on run out of memory, once."""
    model = sd_models.model_data.sd_model
    unet = (model.forge_objects.unet if hasattr(model, "forge_objects") else model).model.diffusion_model
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


def add_routes(_, app: FastAPI) -> None:
    app.add_api_route("/ditail-test/options", options, methods=["GET"])
    app.add_api_route("/ditail-test/calls", calls, methods=["GET"])
    app.add_api_route("/ditail-test/fail", fail_at, methods=["POST"])
    app.add_api_route("/ditail-test/reload-ui", lambda: shared.state.request_restart(), methods=["POST"])


if "ditail_test" not in sys.modules:  # "Reload UI" runs this file again
    sys.modules["ditail_test"] = SimpleNamespace(calls=[])
    for unet_class in UNETS:
        record_calls(unet_class)
script_callbacks.on_app_started(add_routes)
