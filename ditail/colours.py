"""The colours of one image in another, for hosts: needs scikit-image, which the core does without."""

import numpy as np
from PIL import Image

from .errors import DitailError

# Added to an image's own covariance, in squares of Lab's units: what hardly varies is noise, and stays.
NOISE = 4.0


def match_colours(image: Image.Image, content: Image.Image) -> Image.Image:
    """An image with the hue and chroma of another, and its own lightness.

    The image's pixels in CIE Lab get the mean and covariance of the other's by the linear map that moves them least
    (Pitié and Kokaram, The linear Monge-Kantorovitch linear colour mapping, 2007); of the result a and b are taken.
    Raises DitailError without scikit-image.
    """
    try:
        from skimage.color import lab2rgb, rgb2lab
    except ImportError as error:
        raise DitailError("colours", "needs scikit-image (pip install scikit-image)") from error
    pixels, wanted = (rgb2lab(np.asarray(i.convert("RGB"))).reshape(-1, 3) for i in (image, content))
    moved = (pixels - pixels.mean(0)) @ _least_map(_covariance(pixels, NOISE), _covariance(wanted)) + wanted.mean(0)
    lab = np.concatenate([pixels[:, :1], moved[:, 1:]], 1).reshape(image.height, image.width, 3)
    with np.errstate(invalid="ignore"):
        rgb = lab2rgb(lab)
    return Image.fromarray((rgb.clip(0, 1) * 255).round().astype(np.uint8), "RGB")


def _covariance(pixels: np.ndarray, noise: float = 0.0) -> np.ndarray:
    return np.cov(pixels.T) + noise * np.eye(3)


def _least_map(current: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2` `[3, 3]` for the covariances A and B."""
    root, inverse = _power(current, 0.5), _power(current, -0.5)
    return inverse @ _power(root @ wanted @ root, 0.5) @ inverse


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values.clip(1e-9) ** exponent) @ vectors.T
