"""The source pass in Forge: encoding, inverting, generating and decoding with the loaded models."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from backend.sampling.sampling_function import sampling_prepare
from modules import devices, processing, prompt_parser, shared
from torch import Tensor

from ...content.images import LATENT_SCALE
from ...job.host import Model, Prompts, SamplingPlan
from ...method.inversion import Denoiser, combine_conds
from ...method.latents import SourceLatents
from .. import loaded
from ..progress import WebuiProgress, source_job
from ..source_models import WebuiModels, at_latent_size, record_generation, schedule_of
from .loading import borrowed_models, untouched_notes
from .sampling import noise_schedule


class ForgeModels(WebuiModels):
    """The source pass of Forge's job `p`: see `job.host.SourceModels`."""

    @contextmanager
    def source_pass(self, steps: Sequence[int]) -> Iterator[WebuiProgress]:
        with (source_job(self.p, self.target_steps(), list(steps)) as progress, torch.random.fork_rng(),
              untouched_notes()):
            yield progress

    def borrowed_models(self) -> AbstractContextManager[Callable[..., AbstractContextManager[Model]]]:
        return borrowed_models(self.p)

    def encode(self, model: Model, pixels: Tensor, latent_hw: tuple[int, int]) -> Tensor:
        with _posterior_mean(model):
            z0 = model.encode_first_stage(pixels.to(devices.device, torch.float32))
        return at_latent_size(z0, latent_hw)

    def denoiser(self, model: Model, prompts: Prompts, alpha: float, beta: float, size: tuple[int, int],
                 plan: SamplingPlan) -> Denoiser:
        return source_denoiser(model, prompts, alpha, beta, size, plan)

    def alphas_cumprod(self, model: Model) -> Tensor:
        with noise_schedule(model):
            return super().alphas_cumprod(model)

    def generate(self, model: Model, images: Sequence[tuple[Prompts, int]], size: tuple[int, int], plan: SamplingPlan,
                 check: Callable[[], None], *, decoded: bool) -> list[SourceLatents]:
        _set_clip_skip(model)
        with noise_schedule(model):
            return record_generation(self.p, model, images, size, plan, check, decoded=decoded)


def _set_clip_skip(model) -> None:
    """Set the model's CLIP skip; Forge itself does so only before it encodes prompts that are not cached."""
    model.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))


@contextmanager
def _posterior_mean(model) -> Iterator[None]:
    """A context in which Forge's VAE returns its posterior's mean instead of a sample."""
    options = model.forge_objects.vae.patcher.model_options
    before = options.get("model_vae_regulation")
    options["model_vae_regulation"] = lambda posterior: posterior.mode()
    try:
        yield
    finally:
        options["model_vae_regulation"] = before


@torch.no_grad()
def source_denoiser(model, prompts: Prompts, alpha: float, beta: float, size: tuple[int, int],
                    plan: SamplingPlan) -> Denoiser:
    """`(z, t) -> eps` of a model under `alpha * C_pos - beta * C_neg`; prompt editing follows the plan."""
    _set_clip_skip(model)
    positive, negative = (schedule_of(model, text, plan, size, is_negative)
                          for text, is_negative in zip(prompts, (False, True), strict=True))
    with noise_schedule(model):
        prediction = loaded.prediction(model)
    latent = torch.zeros(1, 4, size[1] // LATENT_SCALE, size[0] // LATENT_SCALE, device=devices.device)
    masked = _masked_image(model, latent, size)
    # After encoding prompts and images, for which Forge may have moved the U-Net off the GPU.
    sampling_prepare(model.forge_objects.unet, latent)
    unet = model.forge_objects.unet.model

    def denoise(z: Tensor, t: float) -> Tensor:
        cond = unet_arguments(_combined(alpha, positive(t), beta, negative(t)), unet.computation_dtype)
        x = torch.cat([z, *masked], 1).to(unet.computation_dtype)
        timesteps = torch.full((len(z),), t, device=z.device)
        cond = {k: v.to(z.device) for k, v in cond.items()}
        return prediction.eps(unet.diffusion_model(x, timesteps, transformer_options={}, **cond), z, t)

    return denoise


def _masked_image(model, latent: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The additional input of an inpainting model in txt2img, where everything is masked; empty for other models."""
    if not model.is_inpaint:
        return []
    with _posterior_mean(model):
        return [processing.txt2img_image_conditioning(model, latent, *size)]


def _combined(alpha: float, cond, beta: float, uncond):
    """`alpha * cond - beta * uncond`; SDXL's pooled vector is that of `cond`."""
    if not isinstance(cond, dict):
        return combine_conds(alpha, cond, beta, uncond)
    return {**cond, "crossattn": combine_conds(alpha, cond["crossattn"], beta, uncond["crossattn"])}


def unet_arguments(cond, dtype: torch.dtype) -> dict[str, Tensor]:
    """A conditioning of Forge as the U-Net's keyword arguments."""
    if not isinstance(cond, dict):
        return {"context": cond.to(dtype)}
    return {"context": cond["crossattn"].to(dtype), "y": cond["vector"].to(dtype)}


@torch.no_grad()
def null_conditioning(model, size: tuple[int, int]) -> dict[str, Tensor]:
    """The U-Net's keyword arguments for the prompt "", from the model's text encoder."""
    _set_clip_skip(model)
    with untouched_notes():
        cond = model.get_learned_conditioning(prompt_parser.SdConditioning([""], True, *size))
    return unet_arguments(cond, model.forge_objects.unet.model.computation_dtype)
