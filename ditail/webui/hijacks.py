"""Everything of the WebUI that Ditail replaces or switches temporarily, with the reason and what undoes it.

Each change is undone by its context manager, or is made to an object that ends with the job (the job, its sampler).
`tests/webui/test_left_as_found.py` and `tests/webui/test_faults.py` test this. The hooks in the U-Net are in
`unet/injection.py`, loading models is in `loading.py`, the end of the guidance in `guidance.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from modules import processing, sd_hijack, sd_models, sd_samplers_common, shared
from torch import Tensor

from ..job.host import SamplingPlan
from ..method.latents import SourceLatents
from .sampling import timestep_at

ORIGINAL = "_ditail_original"
TOKEN_MERGING = "get_token_merging_ratio"


# Methods of a job. The WebUI logs an exception of a script callback and goes on without the script, so an error there
# would give a plain image; exceptions of `init` (once per job) and `sample` (once per batch) end the job. Forge also
# gets the token merging ratio from a method of the job; with Ditail it is 0. Undone by `restore_method`.
METHODS = ("init", "sample", TOKEN_MERGING)


def replace_method(p, name: str, method: Callable) -> None:
    """Make job `p` call `method()(original, *args, **kwargs)` instead of its method `name`.

    If `method()` is None, as the job is no longer Ditail's, only the original is called.
    """
    original = getattr(p, name)

    @wraps(original)
    def replaced(*args, **kwargs):
        # Other extensions (ControlNet) store this function and call it in later runs of the job.
        current = method()
        return current(original, *args, **kwargs) if current else original(*args, **kwargs)

    setattr(replaced, ORIGINAL, original)
    setattr(p, name, replaced)


def restore_method(p, name: str) -> None:
    """Undo `replace_method`, if it was called."""
    replaced = p.__dict__.get(name)
    if hasattr(replaced, ORIGINAL):
        del p.__dict__[name]
        original = getattr(replaced, ORIGINAL)
        if getattr(original, "__func__", None) is not getattr(type(p), name):
            setattr(p, name, original)  # another extension had replaced it first


def make_sampler_raise(sampler, error: Exception) -> None:
    """Make a job's sampler raise `error`, as a callback can't. The sampler object is only used for this sampling."""
    def fail(*_, **__):
        raise error

    sampler.sample = sampler.sample_img2img = fail


def end_sampling(denoiser) -> None:
    """Make a running sampling end at its next step, as an interrupted one does.

    Without `state.interrupted`, after which an X/Y/Z plot or a batch would leave all that is still to come blank.
    """
    def end(*_, **__):
        raise sd_samplers_common.InterruptedException

    denoiser.forward = end


# img2img's `init` encodes its init images with `processing.images_tensor_to_samples`.

@contextmanager
def recorded_pixels() -> Iterator[list[Tensor]]:
    """A context that yields a list, to which img2img's `init` adds the init images, resized, cropped and filled.

    Each is `[b, 3, h, w]` in -1..1.
    """
    images = []
    encode = processing.images_tensor_to_samples

    def recorded(image, *args, **kwargs):
        images.append(image.detach().float().cpu() * 2 - 1)
        return encode(image, *args, **kwargs)

    processing.images_tensor_to_samples = recorded
    try:
        yield images
    finally:
        processing.images_tensor_to_samples = encode


# Encoding a prompt adds comments and infotext to the global hijack object.

@contextmanager
def untouched_prompt_notes() -> Iterator[None]:
    """A context in which encoding prompts adds no comments and infotext to the image: these are not its prompts."""
    hijack = sd_hijack.model_hijack
    comments, params = hijack.comments, hijack.extra_generation_params
    hijack.comments, hijack.extra_generation_params = [], {}
    try:
        yield
    finally:
        hijack.comments, hijack.extra_generation_params = comments, params


# Hypertile and token merging change the tokens of the self-attention.

def turn_off_hypertile(p) -> list:
    """Switch hypertile off in the loaded model: each call has other random tiles, so q and k of two calls don't match.

    Its script switches it on again at the start of each job and of a second pass. Returns what was switched off.
    """
    layers = (getattr(module, "__webui_hypertile_params", None) for module in shared.sd_model.model.modules())
    enabled = [params for params in layers if params is not None and params.enabled]
    for params in enabled:
        params.enabled = False
        p.comment("Ditail: hypertile is off for this job")
    return enabled


def turn_off_token_merging(p) -> float:
    """Remove token merging from the loaded model, as the WebUI does at a job's end. Returns its ratio."""
    ratio = getattr(shared.sd_model, "applied_token_merged_ratio", 0)
    if ratio:
        sd_models.apply_token_merging(shared.sd_model, 0)
        p.comment("Ditail: token merging is off for this job")
    return ratio


def shortens_attention(model) -> bool:
    """Whether token merging or hypertile is on in a model."""
    layers = (getattr(module, "__webui_hypertile_params", None) for module in model.model.modules())
    return bool(getattr(model, "applied_token_merged_ratio", 0)) or any(params and params.enabled for params in layers)


@contextmanager
def whole_attention(p) -> Iterator[None]:
    """A context without hypertile and token merging."""
    ratio, tiled = turn_off_token_merging(p), turn_off_hypertile(p)
    try:
        yield
    finally:
        for params in tiled:
            params.enabled = True
        if ratio:
            sd_models.apply_token_merging(shared.sd_model, ratio)


# The ControlNet extension replaces the U-Net's `forward` before a job's `init` and keeps its units in a list. They are
# meant for the image, not for the source. Its scripts are recognised by that list, as their module names are generic.

def _controlnets(p) -> list:
    """The job's scripts that have an active ControlNet."""
    return [script for script in getattr(p.scripts, "alwayson_scripts", ())
            if getattr(getattr(script, "latest_network", None), "control_params", None)]


@contextmanager
def without_controlnet(p) -> Iterator[None]:
    """A context in which ControlNet adds nothing to the U-Net."""
    emptied = [(script.latest_network, script.latest_network.control_params) for script in _controlnets(p)]
    for network, _ in emptied:
        network.control_params = []
    try:
        yield
    finally:
        for network, params in emptied:
            network.control_params = params


def hook_controlnet_again(p) -> None:
    """Let ControlNet hook the target's U-Net again, which may be a new object after models were loaded."""
    for script in _controlnets(p):
        script.process(p, *p.script_args[script.args_from : script.args_to])


def controlnet_kinds(p) -> set[str]:
    """The names of the active ControlNets' kinds."""
    params = [param for script in _controlnets(p) for param in script.latest_network.control_params]
    return {param.control_model_type.name for param in params}


# The latents of a plain sampling are recorded by wrapping methods of its sampler object.

class Recorder:
    """Records the VP latents of a sampling, and whether it was completed.

    The WebUI raises no exception if a sampling ends early: when it is interrupted, skipped or stopped, and after a
    RecursionError. Latents recorded until then are incomplete.
    """

    def __init__(self, plan: SamplingPlan):
        self._plan = plan
        self._latents: dict[float, Tensor] = {}
        self._returned = False

    def attach(self, sampler) -> None:
        """Record a sampler that is about to start. Its object is only used for this sampling, so nothing is undone."""
        denoiser, latents = sampler.model_wrap_cfg, {}
        forward, func = denoiser.forward, sampler.func
        has_sigmas = hasattr(sampler.model_wrap, "sigma_to_t")

        @wraps(forward)
        def recording_forward(x, sigma, *args, **kwargs):
            vp = x / (1 + float(sigma.flatten()[0]) ** 2) ** 0.5 if has_sigmas else x
            # A sampler that calls the model twice at one timestep starts its next step from the second latent.
            latents[timestep_at(sampler.model_wrap, sigma)] = vp
            return forward(x, sigma, *args, **kwargs)

        @wraps(func)
        def watched_func(*args, **kwargs):
            samples = func(*args, **kwargs)
            self._returned = True
            return samples

        denoiser.forward, sampler.func = recording_forward, watched_func
        self._latents, self._returned = latents, False

    @property
    def is_complete(self) -> bool:
        """Whether the sampling ran as planned, to its last step."""
        state = shared.state
        if not self._returned or state.interrupted or state.skipped or state.stopping_generation:
            return False
        return self._plan.is_adaptive or len(self._latents) >= len(self._plan.timesteps)

    def latents(self, alphas_cumprod: Tensor, z0: Tensor) -> list[SourceLatents]:
        """The recorded latents of a complete sampling, one SourceLatents per row. z0: `[b, c, h, w]`, its result."""
        timesteps = sorted(self._latents)
        rows = torch.stack([self._latents[t].float().cpu() for t in timesteps]).split(1, 1)
        return [SourceLatents(timesteps, row.clone(), alphas_cumprod.float().cpu(), z0=end)
                for row, end in zip(rows, z0.split(1), strict=True)]
