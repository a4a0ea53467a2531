"""The end of the guidance: steps with a CFG scale of 1 (`guidance_until`), which need no uncond rows.

The WebUI can leave out uncond rows itself ("Negative Guidance minimum sigma"), but at every step only with an option,
which is set during each call of the denoiser. Without uncond rows it gets a sum of prompts (`AND`) wrong:
AUTOMATIC1111's keeps the last prompt alone, Forge multiplies the image by the number of prompts. Forge's DDIM CFG++
takes its direction from these rows, and extensions that replace Forge's CFG (Latent Modifier) read them. There
they are kept, and only the scale is set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps

from modules import shared

from . import loaded
from .sampling import timestep_at

NGMS_AT_EVERY_STEP = "s_min_uncond_all"
NGMS_INFOTEXT = ("NGMS", "NGMS all steps")
# A CFG scale at which Forge, too, computes the uncond rows; at 1 exactly it leaves them out.
ALMOST_1 = 1 + 1e-6


@contextmanager
def limited_guidance(sampler, above: float) -> Iterator[None]:
    """A context in which a sampler uses a CFG scale of 1, and mostly no uncond rows, at timesteps up to `above`."""
    denoiser = sampler.model_wrap_cfg
    forward = denoiser.forward

    @wraps(forward)
    def limited(x, sigma, *args, **kwargs):
        if timestep_at(sampler.model_wrap, sigma) > above:
            return forward(x, sigma, *args, **kwargs)
        if kwargs["uncond"] is not None and _needs_uncond(denoiser, kwargs["cond"]):
            with _hires_scale(denoiser.p, ALMOST_1):
                return forward(x, sigma, *args, **{**kwargs, "cond_scale": ALMOST_1, "s_min_uncond": 0.0})
        with _uncond_left_out_at_every_step(denoiser.p):
            return forward(x, sigma, *args, **{**kwargs, "cond_scale": 1.0, "s_min_uncond": float("inf")})

    try:
        if above > float("-inf"):
            denoiser.forward = limited
        yield
    finally:
        if denoiser.__dict__.get("forward") is limited:
            denoiser.forward = forward


def _needs_uncond(denoiser, cond) -> bool:
    """Whether a step without uncond rows would not be one with a CFG scale of 1. cond: the prompts of the images."""
    if any(len(parts) != 1 or parts[0].weight != 1 for parts in cond.batch):
        return True
    if not loaded.IS_FORGE:
        return False
    options = shared.sd_model.forge_objects.unet.model_options
    return denoiser.need_last_noise_uncond or "sampler_cfg_function" in options


@contextmanager
def _hires_scale(p, scale: float) -> Iterator[None]:
    """A context with the CFG scale that Forge has for the hires pass."""
    before = getattr(p, "hr_cfg", None)
    try:
        if before is not None:
            p.hr_cfg = scale
        yield
    finally:
        if before is not None:
            p.hr_cfg = before


@contextmanager
def _uncond_left_out_at_every_step(p) -> Iterator[None]:
    """A context with the option set. The WebUI would write it to infotext, and pasting that would set it for good.

    It is set as an attribute, which is read before `data`; those may be saved to `config.json` at any moment.
    """
    before = {key: p.extra_generation_params[key] for key in NGMS_INFOTEXT if key in p.extra_generation_params}
    vars(shared.opts)[NGMS_AT_EVERY_STEP] = True
    try:
        yield
    finally:
        vars(shared.opts).pop(NGMS_AT_EVERY_STEP, None)
        for key in NGMS_INFOTEXT:
            p.extra_generation_params.pop(key, None)
        p.extra_generation_params.update(before)


def leave_out_image_of_uncond(params, rows: int) -> None:
    """Let `image_cond` have the first `rows` rows, those of the prompts, in a step without uncond rows.

    The WebUI leaves out its uncond rows everywhere else, so a model that reads it (inpainting) would fail.
    """
    if NGMS_AT_EVERY_STEP in vars(shared.opts):
        params.image_cond = params.image_cond[:rows]
