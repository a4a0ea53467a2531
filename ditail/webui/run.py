"""One job of the WebUI with Ditail switched on: the source pass, then injection while it samples.

The WebUI logs what a script callback raises and goes on without the script, so a failure there would end in a plain
picture. The work is therefore done in two methods of the job itself that the WebUI does not guard: `init` (once per
job, before sampling) and `sample` (once per batch), which are replaced on the instance.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps

import torch
from fastapi import HTTPException
from modules import devices, extra_networks, processing, sd_models, shared
from PIL import Image
from torch import Tensor

from ..errors import DitailError
from ..images import LATENT_SCALE, fit, mask_to_latent, picture_to_tensor
from ..injection import Injection, remove
from ..inversion import invert
from ..latents import LatentCache, SourceLatents, latents_key
from ..savings import Savings
from ..schedule import InjectionSteps
from ..sites import find_sites
from . import models
from .infotext import infotext_of
from .progress import Interrupted, Progress, source_job
from .request import Request
from .sampling import SamplingPlan, plan_sampling, record_generation

log = logging.getLogger("ditail")

RUN = "_ditail_run"
ORIGINAL = "_ditail_original"
CACHE = LatentCache(256 * 2**20)
TEXTS = {"image": "inverting the content image", "generate": "generating the source image"}
# What a generated source depends on, besides its model and prompts.
SAMPLING_ATTRIBUTES = ("sampler_name", "scheduler", "steps", "cfg_scale", "subseed_strength", "eta", "s_churn",
                       "s_tmin", "s_tmax", "s_noise", "s_min_uncond")
SAMPLING_OPTIONS = ("eta_ancestral", "eta_ddim", "eta_noise_seed_delta", "randn_source", "sgm_noise_multiplier",
                    "always_discard_next_to_last_sigma", "sigma_min", "sigma_max", "rho", "skip_early_cond",
                    "no_dpmpp_sde_batch_determinism", "uni_pc_variant", "uni_pc_skip_type", "uni_pc_order")


class Ditail(Exception):
    """A DitailError in the tab, where the WebUI shows an exception's class and text: "Ditail: ..."."""


@dataclass
class _Pass:
    """One sampling of the job: its size, what the sampler will do, and the source latents once they are there."""

    hires: bool
    size: tuple[int, int]
    plan: SamplingPlan
    pixels: Tensor | None
    key: str = ""
    latents: SourceLatents | None = None
    mask: Tensor | None = None

    @property
    def latent_hw(self) -> tuple[int, int]:
        return self.size[1] // LATENT_SCALE, self.size[0] // LATENT_SCALE


class Run:
    """Ditail in one processing job `p`."""

    def __init__(self, p, request: Request | None, error: DitailError | None = None):
        self.p = p
        self.request = request
        self.error: Exception | None = error
        self.passes: dict[bool, _Pass] = {}
        self.hooked = []

    def install(self) -> None:
        """Take over `init` and `sample` of the job."""
        setattr(self.p, RUN, self)
        for name, method in (("init", self._init), ("sample", self._sample)):
            _replace(self.p, name, method)

    def _init(self, original, *args, **kwargs) -> None:
        with self._errors_for_the_user():
            if self.error:
                raise self.error
            with _recorded_pixels() as seen:
                original(*args, **kwargs)
            self._prepare(seen)

    def _sample(self, original, *args, **kwargs) -> Tensor:
        with self._errors_for_the_user():
            try:
                samples = original(*args, **kwargs)
            finally:
                self.detach()
            if self.error:
                raise self.error
            return samples

    @contextmanager
    def _errors_for_the_user(self) -> Iterator[None]:
        try:
            yield
        except DitailError as error:
            log.error("%s", error)
            if self.p.is_api:
                raise HTTPException(status_code=422, detail=str(error)) from error
            raise Ditail(str(error)) from error

    def _prepare(self, seen: list[Tensor]) -> None:
        """The source pass: source latents for every sampling of the job, from the cache or by inversion."""
        p, request = self.p, self.request
        find_sites(shared.sd_model.model.diffusion_model)
        self._without_token_merging()
        target = shared.sd_model.sd_checkpoint_info
        info = request.checkpoint or target
        models.check_architecture(info, shared.sd_model.model.diffusion_model)
        keep_vae = info.filename == target.filename and not request.settings.source_vae
        vae = shared.opts.sd_vae if keep_vae else request.vae
        texts = (request.settings.source_prompt or p.main_prompt,
                 request.settings.source_negative_prompt or p.main_negative_prompt)
        prompt, networks = extra_networks.parse_prompt(texts[0])
        prompts = (prompt, texts[1])
        self._plan(seen)
        depends_on = models.fingerprint(p, info, vae, prompts, networks)
        for step in self.passes.values():
            step.key = latents_key({**depends_on, **self._depends_on(step)})
            step.latents = CACHE.get(step.key)
        todo = [step for step in self.passes.values() if step.latents is None]
        try:
            if todo:
                self._source_pass(todo, info, vae, prompts, networks)
        except Interrupted:
            # Skip would go on with the next picture, and that would be a plain one: both end the job.
            shared.state.interrupted = True
            return
        p.extra_generation_params.update(infotext_of(request, info, self._picture_hash(seen)))

    def _depends_on(self, step: _Pass) -> dict:
        p, settings = self.p, self.request.settings
        if settings.source == "image":
            return {"pixels": step.pixels, "settings": [settings.alpha, settings.beta, step.size, step.plan.timesteps]}
        named = {name: getattr(p, name, None) for name in SAMPLING_ATTRIBUTES}
        options = {name: getattr(shared.opts, name, None) for name in SAMPLING_OPTIONS}
        seeds = [p.all_seeds[0], p.all_subseeds[0] if p.subseed_strength else None]
        return {"generate": {**named, **options}, "seeds": seeds, "size": step.size}

    def _plan(self, seen: list[Tensor]) -> None:
        p = self.p
        if not getattr(p, "txt2img_upscale", False):
            self._add_pass(False, (p.width, p.height), seen)
        # A generated source has no latents at the second pass's size: what it shows there would be another picture.
        if getattr(p, "enable_hr", False) and self.request.settings.source == "image":
            width = p.hr_upscale_to_x - p.truncate_x * LATENT_SCALE
            height = p.hr_upscale_to_y - p.truncate_y * LATENT_SCALE
            self._add_pass(True, (width, height), seen)

    def _add_pass(self, hires: bool, size: tuple[int, int], seen: list[Tensor]) -> None:
        plan = plan_sampling(self.p, hires=hires)
        if plan is None:
            self.p.comment("Ditail: nothing to do, as the denoising strength leaves no step")
            return
        request = self.request
        if request.settings.source == "generate":
            pixels = None
        elif request.image is not None:
            pixels = picture_to_tensor(fit(request.image, *size, request.settings.resize_mode))
        elif seen:
            pixels = _one_picture(seen)
        else:
            raise DitailError("image: a content image is needed in txt2img", "image")
        mask = request.mask and mask_to_latent(request.mask, *size, request.settings.resize_mode)
        self.passes[hires] = _Pass(hires, size, plan, pixels, mask=mask)

    def _picture_hash(self, seen: list[Tensor]) -> str | None:
        if self.request.settings.source == "generate":
            return None
        if self.request.image is None:
            return hashlib.sha256(_one_picture(seen).numpy().tobytes()).hexdigest()[:10]
        return picture_hash(self.request.image)

    def _source_pass(self, todo: list[_Pass], info, vae: str, prompts: tuple[str, str], networks: dict) -> None:
        p = self.p
        model_before = shared.sd_model
        target_steps = [step.plan.steps for step in self.passes.values()]
        with source_job(p, target_steps, [len(step.plan.timesteps) for step in todo]) as job:
            job.show(f"loading {info.name_for_extra}")
            with (torch.random.fork_rng(), models.untouched_prompt_notes(), models.borrow_model(p, info, vae) as model,
                  models.active_extra_networks(p, networks)):
                for step in todo:
                    job.begin(len(step.plan.timesteps), TEXTS[self.request.settings.source])
                    make = self._invert if self.request.settings.source == "image" else self._generate
                    step.latents = make(model, step, prompts, job)
                    CACHE.put(step.key, step.latents)
                    job.end()
        if p.sampler is not None and shared.sd_model is not model_before:
            p.sampler = models.sampler_for(p)  # img2img makes it in `init`, for the model object of that moment

    def _invert(self, model, step: _Pass, prompts: tuple[str, str], job: Progress) -> SourceLatents:
        settings = self.request.settings
        z0 = models.encode(model, step.pixels, step.latent_hw)
        with devices.without_autocast() if devices.unet_needs_upcast else devices.autocast():
            denoise = models.source_denoiser(model, prompts, settings.alpha, settings.beta, step.size,
                                             step.plan.timesteps)
            return invert(denoise, z0, step.plan.timesteps, model.alphas_cumprod.float().cpu(), job.progress)

    def _generate(self, model, step: _Pass, prompts: tuple[str, str], job: Progress) -> SourceLatents:
        with devices.without_autocast() if devices.unet_needs_upcast else devices.autocast():
            latents = record_generation(self.p, model, prompts, step.size, job.check)
        job.check()
        return latents

    def attach(self, x: Tensor, noise: Tensor) -> None:
        """Called with the tensors that the sampler is about to read: hook the U-Net and set where sampling starts."""
        try:
            step = self.passes.get(bool(self.p.is_hr_pass))
            self.detach()
            if step is None:
                return
            self._hook(step)
            if self.request.settings.start == "source" and not step.hires:
                step.plan.start_from(step.latents.at(step.plan.timesteps[-1]), x, noise)
        except Exception as error:
            self.error = error
            self.p.sampler.sample = self.p.sampler.sample_img2img = _raiser(error)

    def follow(self) -> None:
        """Called at each step: a refiner may have put another model in place."""
        if not self.hooked or shared.sd_model.model.diffusion_model is self.hooked[-1]:
            return
        try:
            self._hook(self.passes[bool(self.p.is_hr_pass)])
        except Exception as error:
            self.error = error
            shared.state.interrupted = True

    def _hook(self, step: _Pass) -> None:
        self._without_token_merging()
        model, settings = shared.sd_model, self.request.settings
        unet = model.model.diffusion_model
        steps = InjectionSteps.from_ratios(step.plan.timesteps, settings.conv_ratio, settings.attn_ratio)
        savings = Savings(upcast_attention=shared.opts.upcast_attn)
        Injection(step.latents, models.null_conditioning(model, step.size), steps, step.mask,
                  savings=savings).install(unet)
        self.hooked.append(unet)

    def _without_token_merging(self) -> None:
        """Merged tokens are other ones in the source than in the picture, so q and k would not fit."""
        if getattr(shared.sd_model, "applied_token_merged_ratio", 0):
            # The WebUI takes it off at the job's end anyway.
            sd_models.apply_token_merging(shared.sd_model, 0)
            self.p.comment("Ditail: token merging is off for this job")

    def detach(self) -> None:
        while self.hooked:
            remove(self.hooked.pop())


def release(p) -> None:
    """Give a job back its own methods and take its hooks off; nothing happens for a job without Ditail.

    A script may copy a job or run it twice, so this also undoes what came along with the copy.
    """
    run = p.__dict__.pop(RUN, None)
    if run is not None:
        run.detach()
    for name in ("init", "sample"):
        replaced = p.__dict__.get(name)
        if hasattr(replaced, ORIGINAL):
            del p.__dict__[name]
            original = getattr(replaced, ORIGINAL)
            if getattr(original, "__func__", None) is not getattr(type(p), name):
                setattr(p, name, original)  # another extension had replaced it first


def _replace(p, name: str, method) -> None:
    original = getattr(p, name)

    @wraps(original)
    def replaced(*args, **kwargs):
        return method(original, *args, **kwargs)

    setattr(replaced, ORIGINAL, original)
    setattr(p, name, replaced)


def _raiser(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


def picture_hash(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()[:10]


@contextmanager
def _recorded_pixels() -> Iterator[list[Tensor]]:
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


def _one_picture(seen: list[Tensor]) -> Tensor:
    pictures = seen[0]
    if not (pictures == pictures[:1]).all():
        raise DitailError("image: several different init images in one batch are more than one content image; give "
                          "one in `image`, or send them one by one", "image")
    return pictures[:1]
