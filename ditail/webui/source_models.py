"""The source pass in the WebUI: encoding, inverting, generating and decoding with the loaded models."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from modules import devices, processing, prompt_parser, rng, sd_samplers, shared
from torch import Tensor, nn

from ..content.images import LATENT_SCALE
from ..errors import DitailError
from ..job.host import Model, Prompts, SamplingPlan
from ..method.inversion import Denoiser, combine_conds
from ..method.latents import SourceLatents
from . import hijacks, loaded
from .loading import borrowed_models
from .progress import WebuiProgress, source_job
from .sampling import probe_of


class WebuiModels:
    """The source pass of the WebUI's job `p`: see `job.host.SourceModels`.

    target_steps: returns the number of progress steps of each sampling of the job.
    """

    def __init__(self, p, target_steps: Callable[[], list[int]]):
        self.p, self.target_steps = p, target_steps
        self.device = devices.device

    @contextmanager
    def source_pass(self, steps: Sequence[int]) -> Iterator[WebuiProgress]:
        model_before = shared.sd_model
        with (source_job(self.p, self.target_steps(), list(steps)) as progress, torch.random.fork_rng(),
              hijacks.untouched_prompt_notes(), hijacks.without_controlnet(self.p), hijacks.whole_attention(self.p)):
            yield progress
        if shared.sd_model is not model_before:
            hijacks.hook_controlnet_again(self.p)

    def borrowed_models(self) -> AbstractContextManager[Callable[..., AbstractContextManager[Model]]]:
        return borrowed_models(self.p)

    def encode(self, model: Model, pixels: Tensor, latent_hw: tuple[int, int]) -> Tensor:
        with _precision():
            return encode(model, pixels, latent_hw)

    def decode(self, model: Model, z0: Tensor) -> Tensor:
        with _precision():
            return decode(model, z0)[0]

    def denoiser(self, model: Model, prompts: Prompts, alpha: float, beta: float, size: tuple[int, int],
                 plan: SamplingPlan) -> Denoiser:
        with _precision():
            denoise = source_denoiser(model, prompts, alpha, beta, size, plan)

        def denoise_in_precision(z: Tensor, t: float) -> Tensor:
            with _precision():
                return denoise(z, t)

        return denoise_in_precision

    def alphas_cumprod(self, model: Model) -> Tensor:
        return loaded.alphas_cumprod(model)

    def generate(self, model: Model, images: Sequence[tuple[Prompts, int]], size: tuple[int, int], plan: SamplingPlan,
                 check: Callable[[], None], *, decoded: bool) -> list[SourceLatents]:
        with _precision():
            return record_generation(self.p, model, images, size, plan, check, decoded=decoded)


def _precision() -> AbstractContextManager:
    """The context in which the WebUI samples."""
    return devices.without_autocast() if devices.unet_needs_upcast else devices.autocast()


@torch.no_grad()
def encode(model, pixels: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """`z_0` `[1, 4, h, w]` of pixels `[1, 3, H, W]` in -1..1: the posterior's mean, float32."""
    model.first_stage_model.to(devices.dtype_vae)
    # SDXL's encoder samples its posterior; a fixed seed makes that repeatable.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoding = model.encode_first_stage(pixels.to(devices.device, devices.dtype_vae))
        # For SDXL this is a scaled sample. Tensors have a method `mode`, too, so test for the type.
        is_sample = isinstance(encoding, Tensor)
        z0 = model.get_first_stage_encoding(encoding) if is_sample else model.scale_factor * encoding.mode()
    return at_latent_size(z0, latent_size)


def at_latent_size(z0: Tensor, size: tuple[int, int]) -> Tensor:
    """An encoded image resized to (h, w), as with img2img's "latent upscale"; float32. Raises DitailError for NaN."""
    if not torch.isfinite(z0).all():
        raise DitailError("source_vae", "the VAE gives no finite latent for the content image; try --no-half-vae or "
                          "another VAE")
    return z0.float() if z0.shape[-2:] == size else nn.functional.interpolate(z0.float(), size, mode="bilinear")


@torch.no_grad()
def source_denoiser(model, prompts: tuple[str, str], alpha: float, beta: float, size: tuple[int, int],
                    plan: SamplingPlan) -> Callable[[Tensor, float], Tensor]:
    """`(z, t) -> eps` of a model under `alpha * C_pos - beta * C_neg`; prompt editing follows the plan."""
    positive, negative = (schedule_of(model, text, plan, size, is_negative)
                          for text, is_negative in zip(prompts, (False, True), strict=True))
    prediction = loaded.prediction(model)
    image_cond = _image_conditioning(model, size)

    def denoise(z: Tensor, t: float) -> Tensor:
        cond = {**_combined(alpha, positive(t), beta, negative(t)), **image_cond}
        return prediction.eps(model.apply_model(z, torch.full((len(z),), t, device=z.device), cond), z, t)

    return denoise


def _image_conditioning(model, size: tuple[int, int]) -> dict:
    """txt2img's conditioning for a model that reads an image, too (inpainting: everything masked); others ignore it."""
    latent = torch.zeros(1, 4, size[1] // LATENT_SCALE, size[0] // LATENT_SCALE, device=devices.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # it samples the posterior of a grey image
        cond = processing.txt2img_image_conditioning(model, latent, *size)
    return {"c_adm": cond} if model.model.conditioning_key == "crossattn-adm" else {"c_concat": [cond]}


def schedule_of(model, text: str, plan: SamplingPlan, size: tuple[int, int], is_negative: bool):
    """A function from the timestep to a prompt's conditioning. Prompts joined by `AND` are treated as one prompt."""
    steps = plan.prompt_steps
    calls = dict(zip(plan.timesteps, steps.calls, strict=True))
    parts = [prompt_parser.re_weight.search(part).group(1) for part in prompt_parser.re_AND.split(text)]
    texts = prompt_parser.SdConditioning([", ".join(parts)], is_negative, *size)
    with devices.autocast():
        conds = prompt_parser.get_learned_conditioning(model, texts, steps.first, steps.hires,
                                                       shared.opts.use_old_scheduling)
    return lambda t: prompt_parser.reconstruct_cond_batch(conds, calls[t])


def _combined(alpha: float, cond, beta: float, uncond) -> dict:
    if isinstance(cond, dict):
        return {**cond, "crossattn": combine_conds(alpha, cond["crossattn"], beta, uncond["crossattn"])}
    return {"c_crossattn": [combine_conds(alpha, cond, beta, uncond)]}


def _generation_of(p, model, prompts: list[str], numbers: list[int], size: tuple[int, int]):
    """A copy of `p` for generating the images of these numbers in the job from their seeds, as txt2img does."""
    probe = probe_of(p, hires=False)
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
    """The VP latents of sampling with `model` as the job's txt2img would, one SourceLatents per image.

    images: ((prompt, negative prompt), number in the job) of each; the number gives the seeds. progress: called before
    each evaluation of the model and at the end; raises if the user interrupts. decoded: include the decoded images.
    Raises DitailError if the sampler ends early for another reason.
    """
    texts = [[prompts[i] for prompts, _ in images] for i in (0, 1)]
    probe = _generation_of(p, model, texts[0], [number for _, number in images], size)
    sampler, recorder = sd_samplers.create_sampler(p.sampler_name, model), hijacks.Recorder(plan)
    forward = sampler.model_wrap_cfg.forward

    def checked(*args, **kwargs):
        progress()
        return forward(*args, **kwargs)

    sampler.model_wrap_cfg.forward = checked
    recorder.attach(sampler)
    conds = [prompt_parser.SdConditioning(text, is_negative, *size)
             for text, is_negative in zip(texts, (False, True), strict=True)]
    steps = sampler.config.total_steps(p.steps)
    scheduling = steps, None, shared.opts.use_old_scheduling
    cond = prompt_parser.get_multicond_learned_conditioning(model, conds[0], *scheduling)
    uncond = prompt_parser.get_learned_conditioning(model, conds[1], *scheduling)
    x = probe.rng.next()
    samples = sampler.sample(probe, x, cond, uncond,
                             image_conditioning=processing.txt2img_image_conditioning(model, x, *size))
    progress()
    if not recorder.is_complete:
        raise DitailError("source", f"the sampler {p.sampler_name} ended before its last step")
    sources = recorder.latents(loaded.alphas_cumprod(model), samples)
    if decoded:
        sources = [source.with_image(image) for source, image in zip(sources, decode(model, samples), strict=True)]
    return sources


@torch.no_grad()
def decode(model, samples: Tensor) -> list[Tensor]:
    """The images `[H, W, 3]` uint8, on the CPU, of latents `[b, 4, H / 8, W / 8]`."""
    samples = samples.to(devices.device, devices.dtype_vae)
    images = processing.decode_latent_batch(model, samples, target_device=devices.cpu, check_for_nans=True)
    return [((image.float().clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).contiguous() for image in images]
