"""Models from LDM-layout checkpoints (see `checkpoint_files.py`)."""

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..content.images import LATENT_SCALE
from ..errors import DitailError
from ..method.prediction import Prediction
from ..unet.sites import Architecture, architecture_of
from .checkpoint_files import (
    load_weights,
    read_config,
    read_schedule,
    read_sides,
    read_weights,
    yaml_errors,
)
from .text import TextEncoder, build_text

LIGHTNING = "pytorch_lightning"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLASSES = {
    "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "ldm.models.autoencoder.AutoencoderKL",
}


@dataclass
class Model:
    """A latent diffusion model."""

    name: str
    unet: nn.Module
    vae: Any  # ldm's AutoencoderKL
    text: TextEncoder
    prediction: Prediction
    scale_factor: float
    size_unit: int
    native_side: int

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.unet)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def precision(self):
        """Autocast to the U-Net's dtype: ldm's U-Net computes its embeddings in float32 in any case."""
        dtype = next(self.unet.parameters()).dtype
        return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)

    def eps(self, z: Tensor, t: float, context: Tensor) -> Tensor:
        """The U-Net's eps for VP latents `z` `[b, 4, h, w]`, float32; a v-prediction is converted."""
        rows = torch.full((len(z),), t, device=z.device)
        with self.precision():
            out = self.unet(z, rows, context=context.expand(len(z), *context.shape[1:]))
        return self.prediction.eps(out, z, t)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The schedule `[1000]`."""
        return self.prediction.alphas_cumprod

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings `[b, 77 * chunks, width]`; longer prompts take further chunks of 75 tokens, as in the WebUI."""
        return self.text.encode(prompts, self.device)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """`z_0` `[b, 4, h/8, w/8]` of images `[b, 3, h, w]` in -1..1: the posterior mean times the scale factor."""
        dtype = next(self.vae.parameters()).dtype
        return self.vae.encode(x.to(self.device, dtype)).mean.float() * self.scale_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images `[b, 3, h, w]` in about -1..1."""
        x = self.vae.decode(z.to(next(self.vae.parameters()).dtype) / self.scale_factor).float()
        if not torch.isfinite(x).all():
            raise DitailError(None, f"{self.name}: its VAE gives pixels that are not finite")
        return x

    def check_size(self, width: int, height: int) -> None:
        """Raise DitailError for a size in pixels that the model can't generate."""
        check_size(width, height, self.size_unit)


def check_size(width: int, height: int, unit: int) -> None:
    """Raise DitailError unless a size in pixels is a multiple of a model's `unit`."""
    for key, side in (("width", width), ("height", height)):
        if side < unit or side % unit:
            raise DitailError(key, f"must be a multiple of {LATENT_SCALE}, here of {unit} pixels, got {side}")


def quiet() -> None:
    """Silence warnings and messages of the libraries."""
    warnings.filterwarnings("ignore")
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def build_empty_unet(path: Path) -> nn.Module:
    """The U-Net of the yaml beside a checkpoint, without weights (on the meta device)."""
    config = read_config(path)["unet_config"]
    with torch.device("meta"):
        return build_module(path, config)


def load_model(path: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Model:
    """Load a checkpoint. `device` and `dtype` default to what `default_device` and `default_dtype` choose.

    Raises DitailError naming the file that is missing, broken or of another kind.
    """
    path = Path(path)
    device = device or default_device()
    dtype = dtype or default_dtype(device)
    params = read_config(path)
    state = read_weights(path)
    unet = build(path, params["unet_config"], state, UNET)
    architecture_of(unet)
    vae = build(path, params["first_stage_config"], state, VAE)
    text = build_text(path, params["cond_stage_config"], state)
    for module in (unet, vae, text.model):
        module.eval().requires_grad_(False).to(device)
    unet.to(dtype)
    with yaml_errors(path):
        return Model(
            path.stem, unet, vae, text,
            Prediction(read_schedule(params), params.get("parameterization", "eps") == "v"),
            float(params.get("scale_factor", 0.18215)), *read_sides(params),
        )


def default_device() -> torch.device:
    """An NVIDIA or AMD GPU ("cuda"), else an Intel one ("xpu"), else an Apple one ("mps"), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    # Older versions of torch have no `torch.xpu`.
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: str | torch.device) -> torch.dtype:
    """The U-Net's dtype: half precision on CUDA, else float32."""
    # Autocast is missing or incomplete on MPS and XPU before torch 2.5, and half precision gives NaN on some Macs.
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def build(path: Path, config: dict, state: dict[str, Tensor], prefix: str) -> nn.Module:
    """The ldm module of `config` with the weights below `prefix`, float32."""
    # On the meta device, as initialising weights takes longer than loading them.
    with torch.device("meta"):
        module = build_module(path, config)
    weights = {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}
    load_weights(path, module, weights, prefix, assign=True)
    return module


def upcasts_attention() -> bool:
    """Whether ldm's attention computes q k^T in float32: SD 2.x overflows in half precision."""
    attention = importlib.import_module("ldm.modules.attention")
    return attention._ATTN_PRECISION == "fp32" and not attention.XFORMERS_IS_AVAILBLE


@contextlib.contextmanager
def without_lightning() -> Iterator[None]:
    """A context in which `LightningModule` is `nn.Module`, unless Lightning has been imported.

    ldm's autoencoder is a `LightningModule`, which only its training needs; importing Lightning would take longer than
    everything else before a command's first step.
    """
    if LIGHTNING in sys.modules:
        yield
        return
    stand_in = ModuleType(LIGHTNING)
    stand_in.LightningModule = nn.Module  # type: ignore[attr-defined]
    sys.modules[LIGHTNING] = stand_in
    try:
        yield
    finally:
        del sys.modules[LIGHTNING]


def build_module(path: Path, config: dict) -> nn.Module:
    """The ldm module of `config`, its weights as ldm initialises them."""
    target = config["target"].replace("ldm_patched", "ldm")
    if target not in CLASSES:
        raise DitailError(None, f"{path}: {target} is not a module that the command line can load")
    module, name = target.rsplit(".", 1)
    # ldm prints messages and causes deprecation warnings, which don't concern the user.
    with (yaml_errors(path), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(),
          without_lightning()):
        warnings.simplefilter("ignore")
        # SD 2.x configs set half precision, which `default_dtype` decides instead.
        params = {k: v for k, v in (config.get("params") or {}).items() if k not in ("use_fp16", "use_bf16")}
        return getattr(importlib.import_module(module), name)(**params)
