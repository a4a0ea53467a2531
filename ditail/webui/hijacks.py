"""Everything of the WebUI that Ditail replaces or switches for a while, why, and what undoes it.

Each is undone by the context that it is in, or lies on an object that ends with the job (a job, its sampler). The tests
that show both are `tests/webui/test_left_as_found.py` and `tests/webui/test_faults.py`. The hooks in the U-Net are
`unet/injection.py`, loading models is `loading.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from modules import processing, sd_hijack, sd_models, shared
from torch import Tensor

from ..job.host import SamplingPlan
from ..method.latents import SourceLatents

ORIGINAL = "_ditail_original"
NGMS_AT_EVERY_STEP = "s_min_uncond_all"
TOKEN_MERGING = "get_token_merging_ratio"


# A job's own methods. The WebUI logs what a script callback raises and goes on without the script, so a failure there
# would end in a plain image. `init` (once a job) and `sample` (once a batch) are not guarded. Forge also asks the job
# for the ratio of its token merging, which is 0 with Ditail. Undone by `give_back`.
METHODS = ("init", "sample", TOKEN_MERGING)


def replace_method(p, name: str, method: Callable) -> None:
    """Let job `p` call `method()(original, *args, **kwargs)` where it calls its own method of this name.

    `method()` is None for a job that is no longer Ditail's: the original is then called alone.
    """
    original = getattr(p, name)

    @wraps(original)
    def replaced(*args, **kwargs):
        # Others keep this function over several runs of one job (ControlNet does): it serves the one at work.
        current = method()
        return current(original, *args, **kwargs) if current else original(*args, **kwargs)

    setattr(replaced, ORIGINAL, original)
    setattr(p, name, replaced)


def give_back(p, name: str) -> None:
    """Undo `replace_method`; nothing happens where it was not called."""
    replaced = p.__dict__.get(name)
    if hasattr(replaced, ORIGINAL):
        del p.__dict__[name]
        original = getattr(replaced, ORIGINAL)
        if getattr(original, "__func__", None) is not getattr(type(p), name):
            setattr(p, name, original)  # another extension had replaced it first


def make_sampler_raise(sampler, error: Exception) -> None:
    """Let a job's sampler raise what a callback could not. The sampler ends with the sampling."""
    def fail(*_, **__):
        raise error

    sampler.sample = sampler.sample_img2img = fail


# CFG ends with `guidance_until`. The WebUI leaves out uncond rows itself ("Negative Guidance minimum sigma"), but only
# an option lets it do so at every step; it is set during the call of the denoiser that reads it, and at no other time.

@contextmanager
def limited_guidance(sampler, above: float) -> Iterator[None]:
    """Run a block in which a sampler uses a CFG scale of 1, and no uncond rows, at timesteps up to `above`."""
    denoiser = sampler.model_wrap_cfg
    forward, to_timestep = denoiser.forward, getattr(sampler.model_wrap, "sigma_to_t", None)

    @wraps(forward)
    def limited(x, sigma, *args, **kwargs):
        t = float((to_timestep(sigma) if to_timestep else sigma).flatten()[0])
        if t > above:
            return forward(x, sigma, *args, **kwargs)
        with _uncond_left_out_at_every_step(denoiser.p):
            return forward(x, sigma, *args, **{**kwargs, "cond_scale": 1.0, "s_min_uncond": float("inf")})

    try:
        if above > float("-inf"):
            denoiser.forward = limited
        yield
    finally:
        if denoiser.__dict__.get("forward") is limited:
            denoiser.forward = forward


@contextmanager
def _uncond_left_out_at_every_step(p) -> Iterator[None]:
    """The WebUI notes in infotext that it left them out, which would bring the option back with the image."""
    options, noted = shared.opts.data, dict(p.extra_generation_params)
    had, before = NGMS_AT_EVERY_STEP in options, options.get(NGMS_AT_EVERY_STEP)
    options[NGMS_AT_EVERY_STEP] = True
    try:
        yield
    finally:
        if had:
            options[NGMS_AT_EVERY_STEP] = before
        else:
            del options[NGMS_AT_EVERY_STEP]
        p.extra_generation_params.clear()
        p.extra_generation_params.update(noted)


# img2img encodes its init images in `init`, through this function of the module.

@contextmanager
def recorded_pixels() -> Iterator[list[Tensor]]:
    """What img2img's `init` encodes, `[b, 3, h, w]` in -1..1: the init images resized, cropped and filled."""
    seen = []
    encode = processing.images_tensor_to_samples

    def recorded(image, *args, **kwargs):
        seen.append(image.detach().float().cpu() * 2 - 1)
        return encode(image, *args, **kwargs)

    processing.images_tensor_to_samples = recorded
    try:
        yield seen
    finally:
        processing.images_tensor_to_samples = encode


# Encoding a prompt leaves comments and infotext on the one hijack object.

@contextmanager
def untouched_prompt_notes() -> Iterator[None]:
    """Encoding a prompt leaves comments and infotext for the image; those of other prompts are not its own."""
    hijack = sd_hijack.model_hijack
    comments, params = hijack.comments, hijack.extra_generation_params
    hijack.comments, hijack.extra_generation_params = [], {}
    try:
        yield
    finally:
        hijack.comments, hijack.extra_generation_params = comments, params


# Hypertile and token merging change what the self-attention sees.

def turn_off_hypertile(p) -> list:
    """Switch hypertile off in the model that is loaded: it draws tiles anew for each call, so q and k would not fit.

    Its script sets this anew at the start of each job and of a second pass. Returns what was switched off.
    """
    found = (getattr(module, "__webui_hypertile_params", None) for module in shared.sd_model.model.modules())
    enabled = [params for params in found if params is not None and params.enabled]
    for params in enabled:
        params.enabled = False
        p.comment("Ditail: hypertile is off for this job")
    return enabled


def turn_off_token_merging(p) -> float:
    """Take token merging off the model that is loaded (the WebUI does so at a job's end); returns its ratio."""
    ratio = getattr(shared.sd_model, "applied_token_merged_ratio", 0)
    if ratio:
        sd_models.apply_token_merging(shared.sd_model, 0)
        p.comment("Ditail: token merging is off for this job")
    return ratio


def shortens_attention(model) -> bool:
    """Whether token merging or hypertile is at work in a model."""
    found = (getattr(module, "__webui_hypertile_params", None) for module in model.model.modules())
    return bool(getattr(model, "applied_token_merged_ratio", 0)) or any(params and params.enabled for params in found)


@contextmanager
def whole_attention(p) -> Iterator[None]:
    """Run a block without hypertile and token merging, which change what the attention sees."""
    ratio, tiled = turn_off_token_merging(p), turn_off_hypertile(p)
    try:
        yield
    finally:
        for params in tiled:
            params.enabled = True
        if ratio:
            sd_models.apply_token_merging(shared.sd_model, ratio)


# The ControlNet extension replaces the U-Net's `forward` before a job's `init` and keeps what it adds there in a list.
# That is for the image, not for the source. Its scripts are known by that list, as its module names are not its own.

def _controlnets(p) -> list:
    """The job's scripts that have a ControlNet at work."""
    return [script for script in getattr(p.scripts, "alwayson_scripts", ())
            if getattr(getattr(script, "latest_network", None), "control_params", None)]


@contextmanager
def without_controlnet(p) -> Iterator[None]:
    """Run a block in which ControlNet adds nothing to the U-Net."""
    emptied = [(script.latest_network, script.latest_network.control_params) for script in _controlnets(p)]
    for network, _ in emptied:
        network.control_params = []
    try:
        yield
    finally:
        for network, params in emptied:
            network.control_params = params


def hook_controlnet_again(p) -> None:
    """After models were loaded: the target's U-Net may be a new object, which ControlNet has not seen."""
    for script in _controlnets(p):
        script.process(p, *p.script_args[script.args_from : script.args_to])


def controlnet_kinds(p) -> set[str]:
    """The kinds of ControlNet at work, by their names there."""
    params = [param for script in _controlnets(p) for param in script.latest_network.control_params]
    return {param.control_model_type.name for param in params}


# The latents of a plain sampling, from the sampler object of that sampling.

class Recorder:
    """Notes the VP latents that a sampler passes through, and whether it came to its end.

    The WebUI ends a sampling early without an exception for the caller: when it is interrupted, skipped or stopped, and
    after a RecursionError. What was noted until then is not what a source has.
    """

    def __init__(self, plan: SamplingPlan):
        self._plan = plan
        self._kept: dict[float, Tensor] = {}
        self._returned = False

    def attach(self, sampler) -> None:
        """Listen to a sampler that is about to start; its object is for one sampling, so nothing is undone."""
        denoiser, kept = sampler.model_wrap_cfg, {}
        forward, func = denoiser.forward, sampler.func
        to_timestep = getattr(sampler.model_wrap, "sigma_to_t", None)

        @wraps(forward)
        def recorded(x, sigma, *args, **kwargs):
            at = to_timestep(sigma) if to_timestep else sigma
            # A sampler that asks twice at one timestep starts its next step from the second latent.
            kept[float(at.flatten()[0])] = x / (1 + float(sigma.flatten()[0]) ** 2) ** 0.5 if to_timestep else x
            return forward(x, sigma, *args, **kwargs)

        @wraps(func)
        def to_the_end(*args, **kwargs):
            samples = func(*args, **kwargs)
            self._returned = True
            return samples

        denoiser.forward, sampler.func = recorded, to_the_end
        self._kept, self._returned = kept, False

    @property
    def is_complete(self) -> bool:
        """Whether the sampling was planned as it ran, and ended after its last step."""
        state = shared.state
        if not self._returned or state.interrupted or state.skipped or state.stopping_generation:
            return False
        return self._plan.is_adaptive or len(self._kept) >= len(self._plan.timesteps)

    def latents(self, alphas_cumprod: Tensor, z0: Tensor) -> list[SourceLatents]:
        """What was noted, by row, with the `z_0` that it ended in; only for a complete sampling."""
        timesteps = sorted(self._kept)
        rows = torch.stack([self._kept[t].float().cpu() for t in timesteps]).split(1, 1)
        return [SourceLatents(timesteps, row.clone(), alphas_cumprod.float().cpu(), z0=end)
                for row, end in zip(rows, z0.split(1), strict=True)]
