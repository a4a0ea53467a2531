"""The always-on script's doings, one function per callback of the WebUI; the class itself is in `scripts/`."""

import logging

from modules import shared

from ..errors import DitailError
from ..injection import remove
from .request import Request, is_enabled
from .run import RUN, Run, release

log = logging.getLogger("ditail")


def before_process(p, args: tuple) -> None:
    """Check the settings and take the job over; what is wrong with them is raised inside the generation."""
    release(p)
    if not is_enabled(args):
        return
    request = error = None
    try:
        request = Request.from_args(args)
    except DitailError as wrong:
        error = wrong
    except Exception as unexpected:
        log.exception("reading the settings")
        error = DitailError(f"args: can't be read ({unexpected})", "args")
    Run(p, request, error).install()


def before_sampling(p, x, noise) -> None:
    run = p.__dict__.get(RUN)
    if run is not None:
        run.attach(x, noise)


def on_cfg_denoiser(params) -> None:
    """Once per evaluation of the model, for every job: those of Ditail keep up with a change of model."""
    run = getattr(params.denoiser.p, "__dict__", {}).get(RUN)
    if run is not None:
        run.follow()


def on_script_unloaded() -> None:
    """Before "Reload UI": no hook may outlive the code that knows it."""
    model = shared.sd_model if getattr(shared, "sd_model", None) else None
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if unet is not None:
        remove(unet)
