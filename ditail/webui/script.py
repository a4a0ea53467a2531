"""The always-on script, one function per callback of the WebUI; the class itself is in `scripts/`."""

import logging

from modules import script_callbacks

from ..errors import DitailError
from ..job.request import Request
from ..unet.injection import remove
from . import caches, folder, loaded, preview, send
from .checkpoints import WebuiLibrary
from .controls import Extras, is_enabled, settings_from
from .run import EXTRAS, PLAIN, RUN, SWEEP, Run, release
from .xyz import AXES, add_axes, at_cell, sweep

log = logging.getLogger("ditail")


def before_process(p, args: tuple) -> None:
    """Check the settings and install a Run on the job. Errors are raised later, in the job's `init`."""
    release(p)
    axes = getattr(p, AXES, {})
    if not is_enabled(args) and not axes:
        return
    request, error, further = None, None, getattr(p, SWEEP, [])
    extras = getattr(p, EXTRAS, None) or Extras.from_args(args)
    try:
        extras.check()
        if preview.is_preview(extras):
            preview.make_preview_of(p)
        request = Request.from_values(settings_from(args) | ({"enabled": True} if axes else {}), WebuiLibrary())
        if axes:
            request = at_cell(request, axes, (str(p.prompt), str(p.negative_prompt)))
            further = sweep(request, axes)
    except DitailError as invalid:
        error = invalid
    except Exception as unexpected:
        log.exception("reading the settings")
        error = DitailError("args", f"can't be read ({unexpected})")
    Run(p, request, error, sweep=further, extras=extras, is_plain=getattr(p, PLAIN, False)).install()


def before_sampling(p, x, noise) -> None:
    """Called once per sampling, with the tensors that the sampler will read."""
    run = p.__dict__.get(RUN)
    if run is not None:
        run.attach(x, noise)


def postprocess_image(p, pp) -> None:
    """Called once per image, before inpainting overlays it on the original."""
    run = p.__dict__.get(RUN)
    if run is not None and run.job is not None and not run.job.is_preview:
        pp.image = run.finish(pp.image)


def on_cfg_denoiser(params) -> None:
    """Called before each evaluation of the model, for every job."""
    run = getattr(params.denoiser.p, "__dict__", {}).get(RUN)
    if run is not None:
        run.follow(params)


def on_script_unloaded() -> None:
    """Called before "Reload UI": remove hooks, as the new script objects don't know them."""
    for model in loaded.in_memory():
        remove(loaded.unet_of(model))


def show_log() -> None:
    """Show messages of level INFO in the console, unless the WebUI configures logging."""
    if not log.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("Ditail: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def register() -> None:
    """Add the settings and the callbacks. The WebUI clears the callbacks at "Reload UI" and runs the script again."""
    show_log()
    caches.add_options()  # not in a callback: the API's list of settings may be created before it is called
    callbacks = {"cfg_denoiser": on_cfg_denoiser, "script_unloaded": on_script_unloaded, "before_ui": add_axes,
                 "model_loaded": loaded.on_model_loaded, "after_component": send.on_after_component,
                 "before_image_saved": folder.on_before_image_saved}
    for category, function in callbacks.items():
        # `script_callbacks.on_...` would get the file's name from `inspect.stack()`, which takes some 30 ms each.
        script_callbacks.add_callback(script_callbacks.callback_map[f"callbacks_{category}"], function,
                                      category=category, filename=__file__)
