"""Images: reading the user's, resizing them, and converting them to and from tensors."""

import base64
import binascii
import io
import math
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DitailError, shown

LATENT_SCALE = 8
MAX_PIXELS = 100_000_000
MAX_SHRINKING = 256
ORIENTATION = 0x0112  # EXIF's tag
BACKGROUND = (255, 255, 255)


def read_image(source: str | Path | bytes | Image.Image, key: str = "image") -> Image.Image:
    """RGB image from a path, bytes or a PIL image: rotated as its EXIF data says, transparent parts over white.

    Raises DitailError naming `key` if the image can't be read or has over 100 megapixels.
    """
    return _read(source, key, BACKGROUND, "RGB")


def read_mask(source: str | Path | bytes | Image.Image, key: str = "mask") -> Image.Image:
    """Grayscale image, white = inject; a transparent part counts as black. Raises as `read_image` does."""
    return _read(source, key, (0, 0, 0), "L")


def decode_base64(text: str, key: str = "image") -> bytes:
    """The bytes of a base64 text or data URL. Raises DitailError naming `key`."""
    try:
        return base64.b64decode("".join(text.split(",", 1)[-1].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DitailError(key, f"is not base64 ({error})") from error


def _read(source: str | Path | bytes | Image.Image, key: str, background: tuple[int, int, int],
          mode: str) -> Image.Image:
    name = f"{source}" if isinstance(source, str | Path) else "it"
    try:
        image = _opaque(_upright(source, key), background)
        return image if image.mode == mode else image.convert(mode)
    except DitailError:
        raise
    except FileNotFoundError as error:
        raise DitailError(key, f"{name} does not exist") from error
    except UnidentifiedImageError as error:
        raise DitailError(key, f"{name} is not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise DitailError(key, f"{name} is over {MAX_PIXELS // 10**6} megapixels; scale it down") from error
    except Exception as error:  # decoders raise anything for damaged data: struct.error, KeyError, ...
        raise DitailError(key, f"{name} can't be read as an image ({error})") from error


def _upright(source: str | Path | bytes | Image.Image, key: str) -> Image.Image:
    image = source if isinstance(source, Image.Image) else Image.open(
        io.BytesIO(source) if isinstance(source, bytes) else source)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DitailError(key, f"{width}x{height} is over {MAX_PIXELS // 10**6} megapixels; scale it down")
    # An image that is in memory is not copied for nothing: a folder's job holds dozens of them.
    is_ready = type(image) is Image.Image and image.getexif().get(ORIENTATION, 1) == 1
    image = image if is_ready else ImageOps.exif_transpose(image)
    return _to_8_bits(image) if image.mode.startswith("I") or image.mode == "F" else image


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """An image over a background of one colour, if it has an alpha channel or a transparent colour."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grayscale image in 8 bits (PIL's own conversion clips instead of scaling)."""
    data = bytearray(image.convert("F").tobytes())
    values = torch.frombuffer(data, dtype=torch.float32).view(image.height, image.width)
    return Image.fromarray((values / (257 if values.max() > 255 else 1)).clamp(0, 255).byte().numpy(), "L")


def fit(image: Image.Image, width: int, height: int, resize_mode: str = "crop") -> Image.Image:
    """An image of exactly `width` x `height` pixels.

    "crop": scaled to cover, and cut off equally on both sides. "fill": scaled to fit inside, the border repeats its
    edge. "stretch": scaled without keeping proportions.
    """
    image = _reduced(image, width, height)
    if resize_mode == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if resize_mode == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if resize_mode == "fill":
        return _fill(image, width, height)
    raise DitailError("resize_mode", f'must be "crop", "fill" or "stretch", got {shown(resize_mode)}')


def shrunk_to_cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """An image scaled down, in its proportions, until it just covers `width` x `height`; the same if it does not."""
    scale = max(width / image.width, height / image.height)
    if scale >= 1:
        return image
    size = math.ceil(image.width * scale), math.ceil(image.height * scale)
    return image.resize(size, Image.Resampling.LANCZOS)


def _reduced(image: Image.Image, width: int, height: int) -> Image.Image:
    """An image, averaged down if it is far larger than `width` x `height`: Lanczos would need gigabytes."""
    factors = (max(1, image.width // (MAX_SHRINKING * width)), max(1, image.height // (MAX_SHRINKING * height)))
    return image.reduce(factors) if max(factors) > 1 else image


def _fill(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))),
                         Image.Resampling.LANCZOS)
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    rows = (torch.arange(height) - top).clamp(0, inner.height - 1)
    columns = (torch.arange(width) - left).clamp(0, inner.width - 1)
    pixels = _pixels(inner)[rows][:, columns]
    return Image.fromarray(pixels.squeeze(-1).numpy(), inner.mode)


def _pixels(image: Image.Image) -> Tensor:
    """Bytes `[h, w, channels]`."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, -1)


def image_to_tensor(image: Image.Image) -> Tensor:
    """`[1, 3, h, w]` in -1..1, float32."""
    return (_pixels(image.convert("RGB")).permute(2, 0, 1)[None].float() / 127.5) - 1


def tensor_to_images(x: Tensor) -> list[Image.Image]:
    """RGB images of `[b, 3, h, w]` in -1..1; values outside are clamped."""
    data = ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().contiguous()
    return [Image.fromarray(row.numpy(), "RGB") for row in data]


def mask_to_latent(mask: Image.Image, width: int, height: int, resize_mode: str = "crop") -> Tensor:
    """A mask `[1, 1, height // 8, width // 8]` in 0..1, at least 1 x 1, for an image of `width` x `height`."""
    size = (max(1, width // LATENT_SCALE), max(1, height // LATENT_SCALE))
    cells = fit(mask, width, height, resize_mode).resize(size, Image.Resampling.BOX)
    return _pixels(cells).permute(2, 0, 1)[None].float() / 255
