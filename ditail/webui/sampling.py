"""The plan of a WebUI sampler's sampling, from running it with a stand-in for the model.

Samplers choose their timesteps in many ways (schedulers, midpoints, restarts, options), and extensions add more.
Instead of repeating that here, the WebUI's own sampler runs on a tiny latent, and the stand-in records its calls.
"""

import copy
from collections.abc import Sequence
from functools import wraps

import torch
from modules import sd_models, sd_samplers, shared
from PIL import Image
from torch import Tensor

from ..colours import match_colours
from ..content.collage import Part
from ..content.images import LATENT_SCALE, fit
from ..job.host import Pass, Prompts, PromptSteps, SamplingPlan

PROBE_SIZE = 8
# Attributes of a job and settings that a generated source depends on, besides its model and prompts.
SAMPLING_ATTRIBUTES = ("sampler_name", "scheduler", "steps", "cfg_scale", "subseed_strength", "seed_resize_from_h",
                       "seed_resize_from_w", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond")
SAMPLING_OPTIONS = ("eta_ancestral", "eta_ddim", "eta_noise_seed_delta", "randn_source", "sgm_noise_multiplier",
                    "always_discard_next_to_last_sigma", "sigma_min", "sigma_max", "rho", "skip_early_cond",
                    "no_dpmpp_sde_batch_determinism", "uni_pc_variant", "uni_pc_skip_type", "uni_pc_order",
                    "uni_pc_lower_order_final", "s_min_uncond_all", "beta_dist_alpha", "beta_dist_beta",
                    "enable_quantization", "use_old_karras_scheduler_sigmas", "pad_cond_uncond", "pad_cond_uncond_v0",
                    "batch_cond_uncond", "hypertile_enable_unet", "hypertile_max_depth_unet", "hypertile_max_tile_unet",
                    "hypertile_swap_size_unet", "token_merging_ratio", "s_churn", "s_tmin", "s_tmax", "s_noise")


class _NoNoise:
    """Replaces the job's random number generator, whose state the probe must not change."""

    def next(self) -> Tensor:
        return torch.zeros(1, *_latent_shape(), device=shared.device)


class _StandIn:
    """A model that returns zeros and records the sigma of each call."""

    def __init__(self, inner_model):
        self.inner_model = inner_model
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, **_) -> Tensor:
        self.sigmas.append(float(sigma.flatten()[0]))
        self.last_noise_uncond = torch.zeros_like(x)
        return torch.zeros_like(x)


def plan_sampling(p, *, hires: bool = False) -> SamplingPlan | None:
    """The plan of `p`'s sampling (`hires`: of its second pass) with the loaded model; None if it takes no step."""
    # The WebUI does this only right before sampling, and the settings may have changed since the last job.
    sd_models.apply_alpha_schedule_override(shared.sd_model)
    probe = probe_of(p, hires)
    sampler = sd_samplers.create_sampler((p.hr_sampler_name if hires else None) or p.sampler_name, shared.sd_model)
    model = _StandIn(sampler.model_wrap_cfg.inner_model)
    arguments = _run_with(sampler, model)
    x, noise = (torch.zeros(1, *_latent_shape(), device=shared.device) for _ in range(2))
    x[:, 0], noise[:, 1] = 1, 1
    if hires or hasattr(p, "init_images"):
        steps = (p.hr_second_pass_steps or p.steps) if hires else None
        sampler.sample_img2img(probe, x, noise, None, None, steps=steps)
        image_scale, noise_scale = float(arguments["x"][0, 0, 0, 0]), float(arguments["x"][0, 1, 0, 0])
    else:
        sampler.sample(probe, x, None, None)
        image_scale, noise_scale = 0.0, float(arguments["x"][0, 0, 0, 0])
    if not model.sigmas or not noise_scale:
        return None
    calls, start, sigma = _timesteps(sampler, probe, model.sigmas, arguments)
    return SamplingPlan(tuple(calls), arguments["steps"], start, image_scale, noise_scale, (1 + sigma**2) ** 0.5,
                        _is_adaptive(sampler, arguments), _prompt_steps(p, tuple(calls.values()), hires))


def _prompt_steps(p, calls: tuple[int, ...], hires: bool) -> PromptSteps:
    """See `PromptSteps`; the WebUI's `setup_conds` and `calculate_hr_conds` count so."""
    def total(sampler_name: str, steps: int) -> int:
        return sd_samplers.find_sampler_config(sampler_name).total_steps(steps)

    first = total(p.sampler_name, p.steps)
    if not hires:
        return PromptSteps(calls, first)
    return PromptSteps(calls, first, total(p.hr_sampler_name or p.sampler_name, p.hr_second_pass_steps or p.steps))


def _is_adaptive(sampler, arguments: dict) -> bool:
    """Whether a sampler's function gets only the first and the last sigma."""
    return hasattr(sampler.model_wrap, "sigma_to_t") and not arguments.keys() & {"sigmas", "sigma_sched", "n"}


def _run_with(sampler, model: _StandIn) -> dict:
    """Make `sampler` call `model`. Returns a dict that will get its function's arguments and the number of "steps"."""
    arguments, original = {}, sampler.func

    @wraps(original)
    def func(_, x, **kwargs):
        arguments.update(kwargs, x=x)
        return original(model, x, **{**kwargs, "callback": lambda _: None, "disable": True})

    def launch(steps, run):
        arguments["steps"] = steps
        return run()

    sampler.func, sampler.launch_sampling = func, launch
    return arguments


def probe_of(p, hires: bool):
    """A copy of `p` for running a sampler, which does not change `p`."""
    probe = copy.copy(p)
    probe.extra_generation_params = {}
    probe.rng = _NoNoise()
    probe.all_seeds, probe.iteration, probe.batch_size = [0], 0, 1
    probe.mask = probe.nmask = None
    probe.is_hr_pass = hires
    return probe


def _latent_shape() -> tuple[int, int, int]:
    return getattr(shared.sd_model, "latent_channels", 4), PROBE_SIZE, PROBE_SIZE


def timestep_at(model_wrap, sigma: Tensor) -> float:
    """The timestep of a call of a sampler's denoiser; samplers without sigmas pass it as `sigma`."""
    to_timestep = getattr(model_wrap, "sigma_to_t", None)
    return float((to_timestep(sigma) if to_timestep else sigma).flatten()[0])


def _timesteps(sampler, probe, sigmas: list[float], arguments: dict) -> tuple[dict[float, int], float, float]:
    """(timesteps, the one at which sampling starts, the sigma there; 0 for a sampler with VP latents).

    sigmas: of each call. The timesteps are ascending, each with the number of calls before it.
    """
    to_timestep = getattr(sampler.model_wrap, "sigma_to_t", None)
    if to_timestep is None:
        return {t: sigmas.index(t) for t in sorted(set(sigmas))}, max(sigmas), 0.0
    grid = next((arguments[k] for k in ("sigmas", "sigma_sched") if k in arguments), None)
    first = float(grid[0]) if grid is not None else float(arguments["sigma_max"])
    if _is_adaptive(sampler, arguments):
        # An adaptive sampler takes other steps with a real model; latents are interpolated on the scheduler's sigmas.
        sigmas = sorted([*sigmas, *(float(s) for s in sampler.get_sigmas(probe, probe.steps) if s < first)],
                        reverse=True)
    device = sampler.model_wrap.log_sigmas.device
    ascending = sorted(sigma for sigma in {*sigmas, first} if sigma > 0)
    timesteps = to_timestep(torch.tensor(ascending, device=device)).double().tolist()
    calls = [sigmas.index(sigma) if sigma in sigmas else 0 for sigma in ascending]
    return dict(sorted(zip(timesteps, calls, strict=True))), timesteps[ascending.index(first)], first


class WebuiJob:
    """The WebUI's job `p`: see `job.host.HostJob`."""

    def __init__(self, p):
        self.p = p

    @property
    def batch_size(self) -> int:
        return self.p.batch_size  # img2img's `init` lowers it if there are fewer init images

    def prompts(self) -> Sequence[Prompts]:
        images = self.p.n_iter * self.p.batch_size
        return list(zip(self.p.all_prompts, self.p.all_negative_prompts, strict=True))[:images]

    def passes(self) -> Sequence[Pass]:
        p = self.p
        passes = [Pass(False, (p.width, p.height), not getattr(p, "txt2img_upscale", False))]
        if getattr(p, "enable_hr", False):
            width = p.hr_upscale_to_x - p.truncate_x * LATENT_SCALE
            passes.append(Pass(True, (width, p.hr_upscale_to_y - p.truncate_y * LATENT_SCALE)))
        return passes

    def plan(self, *, hires: bool) -> SamplingPlan | None:
        return plan_sampling(self.p, hires=hires)

    @property
    def part(self) -> Part | None:
        if getattr(self.p, "paste_to", None) is None:
            return None
        x, y, width, height = self.p.paste_to
        return Part(self.p.init_images[0].size, (x, y, x + width, y + height))

    def sampled_part(self, image: Image.Image, resize_mode: str) -> Image.Image:
        part = self.part
        return fit(image, *part.size, resize_mode).crop(part.edges) if part else image

    def generation_fingerprint(self, image: int) -> dict:
        p = self.p
        named = {name: getattr(p, name, None) for name in SAMPLING_ATTRIBUTES}
        options = {name: getattr(shared.opts, name, None) for name in SAMPLING_OPTIONS}
        seeds = [p.all_seeds[image], p.all_subseeds[image] if p.subseed_strength else None]
        return {"generate": {**named, **options}, "seeds": seeds}

    def generation_metadata(self, image: int) -> dict[str, str]:
        p = self.p
        return {"seed": str(p.all_seeds[image]), "sampler": str(p.sampler_name), "steps": str(p.steps)}

    def match_colours(self, image: Image.Image, content: Image.Image) -> Image.Image:
        return match_colours(image, content)

    def comment(self, text: str) -> None:
        self.p.comment(text)
