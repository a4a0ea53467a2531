"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..errors import DitailError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`, which it replaces at the end of the block; removed if that raises.

    Raises DitailError naming `path` for what the system refuses (a full disk, a folder that is read-only).
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def unwritable(path: Path, error: OSError) -> DitailError:
    return DitailError(f"{path}: can't be written ({error.strerror or error})")


def make_folder(path: Path, option: str = "") -> None:
    """Make a folder. Raises DitailError naming the option where it can't be made or can't be written to."""
    start = f"{option}: " if option else ""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DitailError(f"{start}the folder {path} can't be made ({error.strerror})") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DitailError(f"{start}the folder {path} can't be written to")


def check_writable(path: Path, option: str) -> None:
    """Make a file's folder. Raises DitailError naming the option where the file can't be written, before any work."""
    if path.is_dir():
        raise DitailError(f"{option}: {path} is a folder")
    make_folder(path.parent, option)


def save_image(image: Image.Image, path: Path, settings: Mapping) -> None:
    """A PNG that says how it was made."""
    info = PngInfo()
    info.add_text("ditail", json.dumps({"version": __version__, **settings}))
    with whole_file(path) as part:
        image.save(part, "PNG", pnginfo=info)
