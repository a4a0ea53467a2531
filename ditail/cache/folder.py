"""Source latents on disk: a folder of safetensors files, which several processes may share."""

import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import DitailError
from ..method.latents import FORMAT, SourceLatents

log = logging.getLogger("ditail")

NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
PART = re.compile(NAME.pattern + r"\.[0-9a-f]{32}\.part")
# A partial file that is older was left by a crash; one that is being written is younger.
PART_SECONDS = 3600


class LatentFolder:
    """Source latents as files named by their keys (see `cache_key`), the least recently used deleted first once they
    exceed `budget` bytes.

    Only files whose name and header are Ditail's are deleted. Disk errors are logged as warnings, once for each file
    and once for the folder; nothing is raised.
    """

    def __init__(self, path: str | Path, budget: int):
        self.path, self.budget = Path(path), budget
        self._warned: set[Path] = set()

    def __len__(self) -> int:
        return len(self._files())

    @property
    def nbytes(self) -> int:
        return sum(size for _, size, _ in self._files())

    def get(self, key: str) -> SourceLatents | None:
        """An entry, or None; a damaged or misnamed file is deleted."""
        path = self._path(key)
        try:
            latents, metadata = SourceLatents.load(path)
            if metadata.get("key") == key:
                self.touch(key)
                return latents
            reason = f"{path}: was renamed"
        except DitailError as error:
            if isinstance(error.__cause__, OSError):
                if not isinstance(error.__cause__, FileNotFoundError):
                    self._warn(self.path, str(error))
                return None
            reason = str(error)
        self._warn(path, reason)
        _delete(path)
        return None

    def put(self, key: str, latents: SourceLatents, metadata: Mapping[str, str]) -> None:
        """Keep an entry, deleting others for it; one larger than the whole budget is not kept."""
        path = self._path(key)
        if latents.nbytes > self.budget or _is_foreign(path):
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            latents.save(path, {**metadata, "key": key})
        except OSError as error:
            self._warn(self.path, f"{self.path}: source latents can't be kept on disk ({error})")
        self.trim()

    def touch(self, key: str) -> None:
        """Note that an entry has been used."""
        with suppress(OSError):
            os.utime(self._path(key))

    def trim(self) -> None:
        """Delete what exceeds the budget, and partial files that crashes left."""
        self._delete_down_to(self.budget)

    def clear(self) -> None:
        """Delete every entry."""
        self._delete_down_to(0)

    def _path(self, key: str) -> Path:
        path = self.path / f"{key}.safetensors"
        if not NAME.fullmatch(path.name):
            raise ValueError(f"{key!r} is not a key of source latents")
        return path

    def _delete_down_to(self, budget: int) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= budget:
                return
            _delete(path)
            total -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every entry, without opening the files."""
        entries: list[tuple[float, int, Path]] = []
        try:
            listing = list(os.scandir(self.path))
        except OSError:
            return entries
        for file in listing:
            path = Path(file.path)
            try:
                stat = file.stat()
            except OSError:
                continue  # deleted meanwhile
            if NAME.fullmatch(file.name):
                entries.append((stat.st_mtime, stat.st_size, path))
            elif not PART.fullmatch(file.name):
                self._warn(path, f"{path}: not a file of Ditail's; it is left alone")
            elif time.time() - stat.st_mtime > PART_SECONDS:
                _delete(path)
        return entries

    def _warn(self, path: Path, sentence: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            log.warning("%s", sentence)


def _delete(path: Path) -> None:
    """Delete a file with a name of ours, unless it is of another format."""
    if not _is_foreign(path):
        with suppress(OSError):
            path.unlink()


def _is_foreign(path: Path) -> bool:
    """Whether a file with a name of ours can be read and is of another format."""
    try:
        with safe_open(str(path), "pt") as file:
            return not (file.metadata() or {}).get("format", "").startswith(FORMAT.rstrip(" 0123456789"))
    except SafetensorError:
        return False
    except (OSError, RuntimeError):  # safe_open calls torch, which raises RuntimeError
        return os.path.exists(path)
