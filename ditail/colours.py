"""Colour transfer between images, for hosts. Needs scikit-image, which the core does not."""

import numpy as np
from PIL import Image

from .errors import DitailError

# Added to the variances of the image's own colours, in squared Lab units, so that the noise of an almost uniform
# channel is not amplified.
NOISE = 4.0


def match_colours(image: Image.Image, content: Image.Image) -> Image.Image:
    """An image with the hue and chroma of another, and its own lightness.

    The image's pixels in CIE Lab get the mean and covariance of the other's by the linear map that moves them least
    (Pitié and Kokaram, The linear Monge-Kantorovitch linear colour mapping, 2007); only a and b of the result are used.
    Raises DitailError without scikit-image.
    """
    try:
        from skimage.color import lab2rgb, rgb2lab
    except ImportError as error:
        raise DitailError("colours", "needs scikit-image (pip install scikit-image)") from error
    pixels, reference = (rgb2lab(np.asarray(i.convert("RGB"))).reshape(-1, 3) for i in (image, content))
    moved = (pixels - pixels.mean(0)) @ _transport(_covariance(pixels, NOISE), _covariance(reference))
    moved += reference.mean(0)
    lab = np.concatenate([pixels[:, :1], moved[:, 1:]], 1).reshape(image.height, image.width, 3)
    with np.errstate(invalid="ignore"):
        rgb = lab2rgb(lab)
    return Image.fromarray((rgb.clip(0, 1) * 255).round().astype(np.uint8), "RGB")


def _covariance(pixels: np.ndarray, noise: float = 0.0) -> np.ndarray:
    return np.cov(pixels.T) + noise * np.eye(3)


def _transport(current: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2` `[3, 3]` for the covariances A and B."""
    root, inverse = _power(current, 0.5), _power(current, -0.5)
    return inverse @ _power(root @ target @ root, 0.5) @ inverse


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values.clip(1e-9) ** exponent) @ vectors.T
