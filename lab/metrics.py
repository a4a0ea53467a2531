"""Metrics of the evaluation: structure relative to the content image, style, distance to the true target image.

Images are `[h, w, 3]` float arrays in 0..1.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.feature import canny
from torch import Tensor, nn

from ditail.errors import DitailError

EDGE_SIGMA = 1.5
EDGE_THRESHOLDS = (0.05, 0.12)
EDGE_TOLERANCE = 2
CHANNELS = (24, 32, 48, 64)


def find_edges(image: np.ndarray) -> np.ndarray:
    """Canny edges `[h, w]`, bool, of any colour channel: an object and its background often differ only in hue."""
    low, high = EDGE_THRESHOLDS
    return np.any([canny(image[..., c], EDGE_SIGMA, low, high) for c in range(3)], axis=0)


def edge_f1(edges: np.ndarray, true_edges: np.ndarray, tolerance: float = EDGE_TOLERANCE) -> float:
    """F1 of two edge maps `[h, w]`; edges match within `tolerance` pixels. Two empty maps give 1."""
    if not edges.any() or not true_edges.any():
        return float(edges.any() == true_edges.any())
    precision = (ndimage.distance_transform_edt(~true_edges)[edges] <= tolerance).mean()
    recall = (ndimage.distance_transform_edt(~edges)[true_edges] <= tolerance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def l1(image: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference, 0..1."""
    return float(np.abs(image - truth).mean())


def to_arrays(x: Tensor) -> np.ndarray:
    """`[b, h, w, 3]` in 0..1 of images `[b, 3, h, w]` in -1..1; values outside are clamped."""
    return ((x.float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()


class StyleClassifier(nn.Module):
    """Logits `[b, styles]` of images `[b, 3, h, w]` in -1..1: convolutions of stride 2, then mean and maximum.

    Images are halved first, as the autoencoder's blur is less visible then.
    """

    def __init__(self, styles: int = 3):
        super().__init__()
        layers, in_channels = [], 3
        for channels in CHANNELS:
            layers += [nn.Conv2d(in_channels, channels, 3, 2, 1), nn.GroupNorm(4, channels), nn.SiLU()]
            in_channels = channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * in_channels, styles)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(F.avg_pool2d(x, 2))
        return self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """The probability of each style, `[b, styles]`; values of `x` outside -1..1 are clamped."""
        return self(x.float().clamp(-1, 1)).softmax(-1)


def load_classifier(path: Path, styles: int = 3) -> StyleClassifier:
    """The trained style classifier in a safetensors file. Raises DitailError if it can't be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    classifier = StyleClassifier(styles)
    try:
        classifier.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DitailError(str(path), f"can't be read as a style classifier ({error})") from error
    return classifier.eval().requires_grad_(False)
