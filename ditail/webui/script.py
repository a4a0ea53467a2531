"""The always-on script's doings, one function per callback of the WebUI; the class itself is in `scripts/`."""

import logging

from modules import script_callbacks

from ..errors import DitailError
from ..job.request import Request
from ..unet.injection import remove
from . import caches, loaded, preview, send
from .checkpoints import WebuiLibrary
from .controls import Extras, is_enabled, settings_from
from .run import EXTRAS, PLAIN, RUN, SWEEP, Run, release
from .xyz import AXES, add_axes, at_cell, sweep

log = logging.getLogger("ditail")


def before_process(p, args: tuple) -> None:
    """Check the settings and take the job over; what is wrong with them is raised inside the generation."""
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
    except DitailError as wrong:
        error = wrong
    except Exception as unexpected:
        log.exception("reading the settings")
        error = DitailError("args", f"can't be read ({unexpected})")
    Run(p, request, error, sweep=further, extras=extras, is_plain=getattr(p, PLAIN, False)).install()


def before_sampling(p, x, noise) -> None:
    """Once per sampling, with the very tensors that the sampler is about to read."""
    run = p.__dict__.get(RUN)
    if run is not None:
        run.attach(x, noise)


def postprocess_image(p, pp) -> None:
    """Once per image, before anything is laid over it."""
    run = p.__dict__.get(RUN)
    if run is not None and run.job is not None and not run.job.is_preview:
        pp.image = run.finish(pp.image)


def on_cfg_denoiser(params) -> None:
    """Once per evaluation of the model, for every job: those of Ditail keep up with a change of model."""
    run = getattr(params.denoiser.p, "__dict__", {}).get(RUN)
    if run is not None:
        run.follow(params.denoiser)


def on_script_unloaded() -> None:
    """Before "Reload UI": no hook may outlive the code that knows it."""
    for model in loaded.in_memory():
        remove(loaded.unet_of(model))


def show_log() -> None:
    """Let the console show what is loaded and made, and why, unless the WebUI's own log level says what to show."""
    if not log.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("Ditail: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def register() -> None:
    """Add the settings and the callbacks; the WebUI forgets these at "Reload UI" and runs the script again."""
    show_log()
    caches.add_options()  # now: the API's list of settings may be made before the callback for settings is called
    callbacks = {"cfg_denoiser": on_cfg_denoiser, "script_unloaded": on_script_unloaded, "before_ui": add_axes,
                 "after_component": send.on_after_component}
    for category, function in callbacks.items():
        # `script_callbacks.on_...` would find out the file's name by `inspect.stack()`: some 30 ms each at the start.
        script_callbacks.add_callback(script_callbacks.callback_map[f"callbacks_{category}"], function,
                                      category=category, filename=__file__)
