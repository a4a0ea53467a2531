"""What a sampler of the WebUI is going to do, found out by running it on a stand-in for the model.

Samplers choose their timesteps in many ways (schedulers, midpoints, restarts, options), and extensions add more. So
none of that is repeated here: the WebUI's own sampler runs on a tiny latent, and the stand-in notes what it is asked.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps

import torch
from modules import devices, processing, prompt_parser, rng, sd_models, sd_samplers, shared
from torch import Tensor

from ..errors import DitailError
from ..images import LATENT_SCALE
from ..latents import SourceLatents

PROBE_SIZE = 8


@dataclass(frozen=True)
class SamplingPlan:
    """One sampling to come.

    timesteps: where the U-Net will be asked, ascending; the last one is where sampling starts. steps: what the WebUI's
    progress counts. The sampler begins at `image_scale * x + noise_scale * noise`; the VP latent `z` of the first
    timestep is `start_scale * z` there. is_adaptive: the sampler takes other steps on a real model.
    """

    timesteps: tuple[float, ...]
    steps: int
    image_scale: float
    noise_scale: float
    start_scale: float
    is_adaptive: bool = False

    def start_from(self, z: Tensor, x: Tensor, noise: Tensor) -> None:
        """Overwrite `noise` so that the sampler begins at the VP latent `z`; `x` (the init latent) stays."""
        start = self.start_scale * z.to(noise)
        # In txt2img x and noise are one tensor, and image_scale is 0.
        noise.copy_((start - self.image_scale * x.to(noise)) / self.noise_scale)


class _NoNoise:
    """Stands in for the job's random numbers, which the probe must not use up."""

    def next(self) -> Tensor:
        return torch.zeros(1, *_latent_shape(), device=shared.device)


class _StandIn:
    """A model that answers zero and notes where it is asked."""

    def __init__(self, inner_model):
        self.inner_model = inner_model
        self.asked: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, **_) -> Tensor:
        self.asked.append(float(sigma.flatten()[0]))
        self.last_noise_uncond = torch.zeros_like(x)
        return torch.zeros_like(x)


def plan_sampling(p, *, hires: bool = False) -> SamplingPlan | None:
    """The plan of `p`'s sampling (`hires`: of its second pass) with the model that is loaded; None for no steps."""
    # The WebUI does this only right before sampling, and the settings may have changed since the last job.
    sd_models.apply_alpha_schedule_override(shared.sd_model)
    probe = _probe_of(p, hires)
    sampler = sd_samplers.create_sampler((p.hr_sampler_name if hires else None) or p.sampler_name, shared.sd_model)
    model = _StandIn(sampler.model_wrap_cfg.inner_model)
    seen = _watch(sampler, model)
    x, noise = (torch.zeros(1, *_latent_shape(), device=shared.device) for _ in range(2))
    x[:, 0], noise[:, 1] = 1, 1
    if hires or hasattr(p, "init_images"):
        steps = (p.hr_second_pass_steps or p.steps) if hires else None
        sampler.sample_img2img(probe, x, noise, None, None, steps=steps)
        image_scale, noise_scale = float(seen["x"][0, 0, 0, 0]), float(seen["x"][0, 1, 0, 0])
    else:
        sampler.sample(probe, x, None, None)
        image_scale, noise_scale = 0.0, float(seen["x"][0, 0, 0, 0])
    timesteps, sigma = _timesteps(sampler, probe, model.asked, seen)
    if not timesteps or not noise_scale:
        return None
    return SamplingPlan(timesteps, seen["steps"], image_scale, noise_scale, (1 + sigma**2) ** 0.5,
                        _is_adaptive(sampler, seen))


def _is_adaptive(sampler, seen: dict) -> bool:
    """Whether a sampler is told only where to begin and to end."""
    return hasattr(sampler.model_wrap, "sigma_to_t") and not seen.keys() & {"sigmas", "sigma_sched", "n"}


def _watch(sampler, model: _StandIn) -> dict:
    """Let `sampler` ask `model`; gives what its function will be called with, and the steps that are counted."""
    seen, original = {}, sampler.func

    @wraps(original)
    def func(_, x, **kwargs):
        seen.update(kwargs, x=x)
        return original(model, x, **{**kwargs, "callback": lambda _: None, "disable": True})

    def launch(steps, run):
        seen["steps"] = steps
        return run()

    sampler.func, sampler.launch_sampling = func, launch
    return seen


def _probe_of(p, hires: bool):
    """A copy of `p` whose changes touch nothing of `p`."""
    probe = copy.copy(p)
    probe.extra_generation_params = {}
    probe.rng = _NoNoise()
    probe.all_seeds, probe.iteration, probe.batch_size = [0], 0, 1
    probe.mask = probe.nmask = None
    probe.is_hr_pass = hires
    return probe


def _latent_shape() -> tuple[int, int, int]:
    return getattr(shared.sd_model, "latent_channels", 4), PROBE_SIZE, PROBE_SIZE


def _timesteps(sampler, probe, asked: list[float], seen: dict) -> tuple[tuple[float, ...], float]:
    """(timesteps, the sigma that sampling starts at in the sampler's own scaling: 0 where that is VP)."""
    to_timestep = getattr(sampler.model_wrap, "sigma_to_t", None)
    if to_timestep is None:
        return tuple(sorted(set(asked))), 0.0
    grid = next((seen[k] for k in ("sigmas", "sigma_sched") if k in seen), None)
    first = float(grid[0]) if grid is not None else float(seen["sigma_max"])
    if _is_adaptive(sampler, seen):
        # An adaptive sampler takes other steps on a real model; the scheduler's grid is fine enough to read between.
        asked = asked + [float(s) for s in sampler.get_sigmas(probe, probe.steps) if s < first]
    device = sampler.model_wrap.log_sigmas.device
    sigmas = torch.tensor(sorted({*asked, first}), device=device)
    return tuple(sorted(set(to_timestep(sigmas[sigmas > 0]).double().tolist()))), first


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

    def latents(self, alphas_cumprod: Tensor) -> list[SourceLatents]:
        """What was noted, by row; only for a complete sampling."""
        timesteps = sorted(self._kept)
        rows = torch.stack([self._kept[t].float().cpu() for t in timesteps]).split(1, 1)
        return [SourceLatents(timesteps, row.clone(), alphas_cumprod.float().cpu()) for row in rows]


def _generation_of(p, model, prompts: list[str], numbers: list[int], size: tuple[int, int]):
    """A copy of `p` for the images of these numbers in the job, with their seeds and in txt2img's way."""
    probe = _probe_of(p, hires=False)
    probe.all_seeds, probe.all_subseeds = [p.all_seeds[i] for i in numbers], [p.all_subseeds[i] for i in numbers]
    probe.seeds, probe.batch_size, probe.refiner_checkpoint_info = probe.all_seeds, len(numbers), None
    probe.prompts = prompts
    shape = (getattr(model, "latent_channels", 4), size[1] // LATENT_SCALE, size[0] // LATENT_SCALE)
    probe.rng = rng.ImageRNG(shape, probe.all_seeds, subseeds=probe.all_subseeds, subseed_strength=p.subseed_strength,
                             seed_resize_from_h=p.seed_resize_from_h, seed_resize_from_w=p.seed_resize_from_w)
    return probe


@torch.no_grad()
def record_generation(p, model, images: Sequence[tuple[tuple[str, str], int]], size: tuple[int, int],
                      plan: SamplingPlan, progress: Callable[[], None], *, decoded: bool) -> list[SourceLatents]:
    """The VP latents that `model` passes through as it samples as the job's txt2img would, by image.

    images: for each (prompt, negative prompt) and its number in the job, whose seeds it takes. progress: called before
    each evaluation of the model, and at the end. decoded: give the latents their picture, too. Raises DitailError if
    the sampler ended early for another reason than the user's wish, at which `progress` raises.
    """
    texts = [[prompts[i] for prompts, _ in images] for i in (0, 1)]
    probe = _generation_of(p, model, texts[0], [number for _, number in images], size)
    sampler, recorder = sd_samplers.create_sampler(p.sampler_name, model), Recorder(plan)
    forward = sampler.model_wrap_cfg.forward

    def checked(*args, **kwargs):
        progress()
        return forward(*args, **kwargs)

    sampler.model_wrap_cfg.forward = checked
    recorder.attach(sampler)
    conds = [prompt_parser.SdConditioning(text, is_negative, *size)
             for text, is_negative in zip(texts, (False, True), strict=True)]
    steps = sampler.config.total_steps(p.steps)
    cond = prompt_parser.get_multicond_learned_conditioning(model, conds[0], steps)
    uncond = prompt_parser.get_learned_conditioning(model, conds[1], steps)
    x = probe.rng.next()
    samples = sampler.sample(probe, x, cond, uncond,
                             image_conditioning=processing.txt2img_image_conditioning(model, x, *size))
    progress()
    if not recorder.is_complete:
        raise DitailError(f"source: the sampler {p.sampler_name} ended before its last step", "source")
    made = recorder.latents(model.alphas_cumprod)
    if decoded:
        pictures = processing.decode_latent_batch(model, samples, target_device=devices.cpu, check_for_nans=True)
        made = [latents.with_picture(((picture.float().clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).contiguous())
                for latents, picture in zip(made, pictures, strict=True)]
    return made
