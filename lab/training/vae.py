"""The demo checkpoints' autoencoder: f = 8, 4 channels, shared by all of them."""

import random

import torch
import torch.nn.functional as F
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from torch import Tensor, nn

from .art import SIDE, STYLES, Art, random_scene
from .loop import to_tensor, train

SCALE_FACTOR = 0.18215
DDCONFIG = {
    "double_z": True, "z_channels": 4, "resolution": SIDE, "in_channels": 3, "out_ch": 3,
    "ch": 64, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 0, "attn_resolutions": [], "dropout": 0.0,
}
FIRST_LOG_VARIANCE = -5.0
KL_WEIGHT = 1e-5
DECODER_NOISE = 0.05


class Autoencoder(nn.Module):
    """`AutoencoderKL` without its Lightning base class, with the same state dict keys."""

    def __init__(self, ddconfig: dict = DDCONFIG):
        super().__init__()
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.quant_conv.weight[4:] *= 0.1
            self.quant_conv.bias[4:] = FIRST_LOG_VARIANCE

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance, each `[b, 4, h/8, w/8]`."""
        mean, logvar = self.quant_conv(self.encoder(x)).float().chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.diff(dim=-1), x.diff(dim=-2)


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 of the pixels, of their differences (edges) and of a 4x smaller image (colour)."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(x), gradients(y), strict=True))
    return F.l1_loss(x, y) + edges + 0.5 * F.l1_loss(F.avg_pool2d(x, 4), F.avg_pool2d(y, 4))


def crops(art: Art, rng: random.Random, count: int, side: int) -> Tensor:
    """Square crops `[count, 3, side, side]` of new random scenes in random styles."""
    images = []
    for _ in range(count):
        x, y = rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)
        images.append(art.render(random_scene(rng), rng.choice(list(STYLES))).crop((x, y, x + side, y + side)))
    return to_tensor(images).contiguous(memory_format=torch.channels_last)


def train_vae(art: Art, minutes: float, rng: random.Random) -> Autoencoder:
    """Train on 64-pixel crops, in the last fifth on whole scenes; then standardise the latents."""
    vae = Autoencoder().to(memory_format=torch.channels_last)

    def loss_of(progress: float) -> Tensor:
        x = crops(art, rng, 16, 64) if progress < 0.8 else crops(art, rng, 4, SIDE)
        mean, logvar = vae.moments(x)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return reconstruction_loss(x, vae.decode(z).float()) + KL_WEIGHT * kl

    train("VAE", list(vae.parameters()), loss_of, minutes=minutes, lr=1e-3, weight_decay=0.0)
    standardise(vae, crops(art, rng, 192, SIDE))
    return vae.eval().requires_grad_(False)


def train_decoder(vae: Autoencoder, art: Art, minutes: float, rng: random.Random) -> None:
    """Train only the decoder, on whole scenes with slightly noisy latents, like those of a sampler."""
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for p in parameters:
        p.requires_grad_(True)

    def loss_of(progress: float) -> Tensor:
        x = crops(art, rng, 4, SIDE)
        with torch.no_grad():
            mean, _ = vae.moments(x)
        z = mean + DECODER_NOISE / SCALE_FACTOR * torch.randn_like(mean)
        return reconstruction_loss(x, vae.decode(z).float())

    train("decoder", parameters, loss_of, minutes=minutes, lr=1e-3, weight_decay=0.0)
    vae.requires_grad_(False)


@torch.no_grad()
def standardise(vae: Autoencoder, images: Tensor) -> None:
    """Fold a shift and scale of each channel into the weights: latents times SCALE_FACTOR get mean 0, variance 1."""
    mean = torch.cat([vae.moments(x)[0] for x in images.split(16)])
    shift, scale = mean.mean((0, 2, 3)), 1 / (SCALE_FACTOR * mean.std((0, 2, 3)))
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * shift).sum(1)
    post.weight /= scale[None, :, None, None]
    quant.weight[:4] *= scale[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - shift) * scale
    quant.bias[4:] += 2 * scale.log()
