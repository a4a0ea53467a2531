"""A folder of images by their hash, within a budget: the images that infotext can only name.

Another process may add to the folder or empty it at any time.
"""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from PIL import Image

HASH = re.compile(r"[0-9a-f]{10}")
PART = re.compile(HASH.pattern + r"\.\d+\.part")
# A partial file that is older was left by a crash; one that is being written is younger.
PART_SECONDS = 3600


class ImageFolder:
    """PNG files named by hash. budget: bytes, 0 = nothing is kept; the least recently used are deleted first."""

    def __init__(self, path: Path, budget: int):
        self.path, self.budget = Path(path), budget

    def put(self, name: str, image: Image.Image) -> None:
        """Keep an image under its hash. Raises OSError where the folder can't be written."""
        if not self.budget:
            return
        file = self._file(name)
        if file.exists():
            os.utime(file)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            image.save(part, "PNG")
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        self.trim()

    def get(self, name: str) -> Image.Image | None:
        """The image of a hash; None if there is none, or its file can't be read."""
        try:
            with Image.open(self._file(name)) as image:
                image.load()
                with suppress(OSError):  # a read-only folder
                    os.utime(self._file(name))
                return image
        except (OSError, ValueError, SyntaxError):
            return None

    def trim(self) -> None:
        """Delete what exceeds the budget, and partial files that crashes left."""
        self._delete_old_parts()
        files = sorted(self._files(), key=lambda entry: entry[1])
        excess = sum(size for _, _, size in files) - self.budget
        for file, _, size in files:
            if excess <= 0:
                return
            with suppress(OSError):
                file.unlink()
            excess -= size

    def clear(self) -> None:
        """Delete every image."""
        self._delete_old_parts()
        for file, _, _ in self._files():
            with suppress(OSError):
                file.unlink()

    def __len__(self) -> int:
        return len(self._files())

    @property
    def nbytes(self) -> int:
        return sum(size for _, _, size in self._files())

    def _file(self, name: str) -> Path:
        if not HASH.fullmatch(name):
            raise ValueError(f"{name!r} is not an image hash")
        return self.path / f"{name}.png"

    def _delete_old_parts(self) -> None:
        """Delete partial files that crashes left."""
        for file in self.path.glob("*.part"):
            with suppress(OSError):
                if PART.fullmatch(file.name) and file.stat().st_mtime < time.time() - PART_SECONDS:
                    file.unlink()

    def _files(self) -> list[tuple[Path, float, int]]:
        """(file, time of its last use, bytes)"""
        entries = []
        for file in self.path.glob("*.png"):
            with suppress(OSError):
                stat = file.stat()
                entries.append((file, stat.st_mtime, stat.st_size))
        return entries
