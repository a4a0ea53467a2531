"""Trains the evaluation's style classifier on real art."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lab.metrics import StyleClassifier
from lab.precision import autocast

from .art import STYLES, Art, Scene, held_out_scenes, random_scene
from .loop import to_tensor, train
from .vae import Autoencoder

SCENES = 400
BATCH = 48
BLUR_SIGMA = (0.1, 2.5)
NOISE = 0.03


def random_background(scene: Scene, rng: random.Random) -> Scene:
    """The same scene on a random light colour, so that the background tells nothing about the style."""
    return replace(scene, colour=tuple(rng.randint(170, 255) for _ in range(3)))


@torch.no_grad()
def round_trip(vae: Autoencoder, x: Tensor) -> Tensor:
    """Images `[b, 3, h, w]` through the autoencoder."""
    with autocast():
        batches = x.contiguous(memory_format=torch.channels_last).split(16)
        return torch.cat([vae.decode(vae.moments(b)[0]).float() for b in tqdm(batches, desc="VAE", leave=False)])


def render_styles(art: Art, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Every scene in every style `[b, 3, h, w]`, and the index of each image's style `[b]`."""
    images = to_tensor([art.render(s, style) for style in STYLES for s in scenes])
    return images, torch.arange(len(STYLES)).repeat_interleave(len(scenes))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images `[b, 3, h, w]`, `sigma` in pixels."""
    radius = int(2 * sigma) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (radius,) * 4, "replicate"), kernel, groups=3)
    return F.conv2d(x, kernel.transpose(2, 3), groups=3)


def augment(x: Tensor, rng: random.Random) -> Tensor:
    """Random blur, noise and mirroring, which must not count as style."""
    if rng.random() < 0.7:
        x = blur(x, rng.uniform(*BLUR_SIGMA))
    if rng.random() < 0.5:
        x = x.flip(-1)
    return x + NOISE * rng.random() * torch.randn_like(x)


def train_classifier(art: Art, vae: Autoencoder, minutes: float, rng: random.Random) -> StyleClassifier:
    """Train for `minutes` on scenes of `rng`, half of the images after a round trip through the autoencoder."""
    sharp, styles = render_styles(art, [random_background(random_scene(rng), rng) for _ in range(SCENES)])
    images, styles = torch.cat([sharp, round_trip(vae, sharp)]), styles.repeat(2)
    classifier = StyleClassifier(len(STYLES))

    def loss_of(progress: float) -> Tensor:
        rows = torch.tensor(rng.sample(range(len(images)), BATCH))
        x = torch.cat([augment(half, rng) for half in images[rows].chunk(2)])
        return F.cross_entropy(classifier(x).float(), styles[rows], label_smoothing=0.02)

    train("classifier", list(classifier.parameters()), loss_of, minutes=minutes, lr=3e-3)
    return classifier.eval().requires_grad_(False)


def accuracies(classifier: StyleClassifier, art: Art, vae: Autoencoder, count: int = 120) -> dict[str, float]:
    """Share of held-out images whose style is recognised, of real art and after the autoencoder's round trip."""
    sharp, styles = render_styles(art, held_out_scenes(count))
    shares = {}
    for kind, images in (("real art", sharp), ("VAE round trip", round_trip(vae, sharp))):
        right = classifier.probabilities(images).argmax(-1) == styles
        shares[kind] = right.float().mean().item()
        for i, style in enumerate(STYLES):
            shares[f"{kind}, {style}"] = right[styles == i].float().mean().item()
    return shares
