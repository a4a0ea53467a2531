"""Reading the user's text files, and writing files atomically."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..errors import DitailError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A context that yields a path to write to, which replaces `path` afterwards, or is deleted after an exception.

    Raises DitailError naming `path` for an OSError (a full disk, a read-only folder).
    """
    part = _part_of(path)
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def unwritable(path: Path, error: OSError) -> DitailError:
    return DitailError(None, f"{path}: can't be written ({error.strerror or error})")


def make_folder(path: Path, option: str | None = None) -> None:
    """Make a folder. Raises DitailError naming the option if it can't be made or can't be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DitailError(option, f"the folder {path} can't be made ({error.strerror})") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DitailError(option, f"the folder {path} can't be written to")


def check_writable(path: Path, option: str) -> None:
    """Make a file's folder. Raises DitailError naming the option if the file could not be written."""
    if path.is_dir():
        raise DitailError(option, f"{path} is a folder")
    make_folder(path.parent, option)


def check_name(path: Path, option: str) -> None:
    """Raise DitailError naming the option if a file's name is too long for its folder, which must exist."""
    try:
        _part_of(path).lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DitailError(option, f"{path} can't be written ({error.strerror})") from error


def check_overwrites(outputs: Iterable[Path], inputs: Iterable[Path], option: str) -> None:
    """Raise DitailError naming the option if a file to be written is one of the user's, also by another path."""
    originals = {_identity(path): path for path in inputs if path.exists()}
    for path in outputs:
        if path.exists() and (original := originals.get(_identity(path))):
            name = "an input" if path == original else f"the input {original}"
            raise DitailError(option, f"{path} would overwrite {name}; choose another name")


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def caseless(path: Path) -> str:
    """A path for comparisons: where names usually differ in more than case, in lower case."""
    return str(path).casefold() if sys.platform in ("win32", "darwin") else str(path)


def read_text(path: Path, option: str | None = None) -> str:
    """The text of a user's UTF-8 file, without a byte order mark. Raises DitailError if it can't be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DitailError(option, f"{path} can't be read ({error})") from error


def save_image(image: Image.Image, path: Path, settings: Mapping) -> None:
    """Write a PNG with its settings as metadata."""
    info = PngInfo()
    info.add_text("ditail", json.dumps({"version": __version__, **settings}))
    with whole_file(path) as part:
        image.save(part, "PNG", pnginfo=info)
