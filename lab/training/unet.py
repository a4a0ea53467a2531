"""The demo U-Nets: a base for all styles, then a low-rank difference for each style."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import make_beta_schedule
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm import tqdm

from lab.precision import autocast

from .art import STYLES, Art, Scene
from .loop import shuffled_batches, to_tensor, train
from .text import WIDTH, tokenize
from .vae import SCALE_FACTOR, Autoencoder

UNET_CONFIG = {
    "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 64,
    "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 2, 2], "num_heads": 8,
    "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": WIDTH, "use_checkpoint": False,
    "legacy": False,
}
BATCH = 32
RANK = 8
NO_CAPTION = 0.12
MIN_SNR = 5.0


@dataclass
class Latents:
    """Encoded scenes: `mean` and `std` `[styles, scenes, 4, h, w]`, already times the scale factor."""

    mean: Tensor
    std: Tensor
    captions: list[str]


@torch.no_grad()
def encode_scenes(art: Art, vae: Autoencoder, scenes: Sequence[Scene]) -> Latents:
    """Render and encode every scene in every style."""
    means, stds = [], []
    with autocast():
        for style in tqdm(STYLES, desc="encode"):
            for i in range(0, len(scenes), 32):
                x = to_tensor([art.render(s, style) for s in scenes[i : i + 32]])
                mean, logvar = vae.moments(x.contiguous(memory_format=torch.channels_last))
                means.append(mean * SCALE_FACTOR)
                stds.append(torch.exp(0.5 * logvar) * SCALE_FACTOR)
    shape = (len(STYLES), len(scenes), *means[0].shape[1:])
    return Latents(torch.cat(means).view(shape), torch.cat(stds).view(shape), [s.caption for s in scenes])


def alphas_cumprod() -> Tensor:
    """SD's scaled-linear schedule, 0.00085 to 0.0120."""
    betas = make_beta_schedule("linear", 1000, linear_start=0.00085, linear_end=0.0120)
    return torch.cumprod(1 - torch.as_tensor(betas), 0).float()


class DenoisingLoss:
    """The eps loss on random scenes of some styles, weighted by min-SNR (arXiv 2303.09556)."""

    def __init__(self, latents: Latents, tokenizer, styles: Sequence[int], rng: random.Random):
        self.latents, self.styles, self.rng = latents, styles, rng
        self.tokens = tokenize(tokenizer, [*latents.captions, ""])
        self.abar = alphas_cumprod()
        self.batches = shuffled_batches(len(latents.captions), BATCH, rng)

    def __call__(self, unet: UNetModel, text_model: nn.Module, with_label: bool) -> Tensor:
        scenes = next(self.batches)
        style = torch.tensor([self.rng.choice(self.styles) for _ in scenes])
        captions = [-1 if self.rng.random() < NO_CAPTION else s for s in scenes]
        mean, std = self.latents.mean[style, scenes], self.latents.std[style, scenes]
        z0 = mean + std * torch.randn_like(mean)
        t = torch.randint(0, 1000, (len(scenes),))
        abar, eps = self.abar[t][:, None, None, None], torch.randn_like(z0)
        context = text_model(self.tokens[captions]).last_hidden_state
        label = {"y": style} if with_label else {}
        out = unet(abar.sqrt() * z0 + (1 - abar).sqrt() * eps, t, context=context, **label).float()
        snr = abar / (1 - abar)
        return (F.mse_loss(out, eps, reduction="none") * snr.clamp(max=MIN_SNR) / snr).mean()


def train_base(loss: DenoisingLoss, text_model: nn.Module, minutes: float, path: Path) -> UNetModel:
    """Train one U-Net for all styles, with the style as label embedding, and save it at `path`."""
    def save():
        torch.save({"unet": unet.state_dict(), "text": text_model.state_dict()}, path)

    unet = UNetModel(**UNET_CONFIG, num_classes=len(STYLES))
    parameters = [*unet.parameters(), *text_model.parameters()]
    train("base", parameters, lambda _: loss(unet, text_model, with_label=True), minutes=minutes, lr=6e-4, save=save)
    save()
    return unet.requires_grad_(False)


def base_unet(state: dict[str, Tensor]) -> UNetModel:
    unet = UNetModel(**UNET_CONFIG, num_classes=len(STYLES))
    unet.load_state_dict(state)
    return unet.requires_grad_(False)


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The base's weights without its labels."""
    return {k: v for k, v in state.items() if not k.startswith("label_emb")}


def fold_label(unet: UNetModel, style: int) -> UNetModel:
    """A U-Net without labels that computes what `unet` does for `style`: the label is added to a bias."""
    plain = UNetModel(**UNET_CONFIG)
    state = plain_state(unet.state_dict())
    state["time_embed.2.bias"] = state["time_embed.2.bias"] + unet.label_emb.weight[style]
    plain.load_state_dict(state)
    return plain.requires_grad_(False)


class LowRank(nn.Module):
    """The parametrisation `weight + up @ down` of a linear or convolution weight, with `up` initially 0."""

    def __init__(self, weight: Tensor, rank: int = RANK):
        super().__init__()
        columns = weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def train_style(unet: UNetModel, text_model: nn.Module, loss: DenoisingLoss, name: str, minutes: float) -> dict:
    """Fine-tune low-rank differences of all weights of a folded U-Net; returns `{weight name: (up, down)}`."""
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv1d)}
    layers = {n: m for n, m in layers.items() if m.weight[0].numel() > 2 * RANK and len(m.weight) > 2 * RANK}
    for module in layers.values():
        parametrize.register_parametrization(module, "weight", LowRank(module.weight))
    low_rank = {n: m.parametrizations.weight[0] for n, m in layers.items()}
    parameters = [p for m in low_rank.values() for p in (m.up, m.down)]
    text_model.requires_grad_(False)
    train(name, parameters, lambda _: loss(unet, text_model, with_label=False), minutes=minutes, lr=1e-3)
    return {f"{n}.weight": (m.up.detach(), m.down.detach()) for n, m in low_rank.items()}
