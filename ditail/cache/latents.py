"""A cache of source latents in RAM and, with a folder, on disk."""

from collections import OrderedDict
from collections.abc import Mapping
from threading import RLock

from ..method.latents import SourceLatents
from .folder import LatentFolder


class LatentCache:
    """Source latents in RAM and, with a `folder`, on disk too.

    In RAM the least recently used are dropped first once they exceed `budget` bytes; the folder has its own budget.
    Call `trim` after changing a budget. Thread-safe.
    """

    def __init__(self, budget: int, folder: LatentFolder | None = None):
        self.budget, self.folder = budget, folder
        self._entries: OrderedDict[str, SourceLatents] = OrderedDict()
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def get(self, key: str) -> SourceLatents | None:
        """An entry from RAM, or from the folder (then it is kept in RAM, too), or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                if self.folder is not None:
                    self.folder.touch(key)
            elif self.folder is not None and (entry := self.folder.get(key)):
                self._keep(key, entry)
            return entry

    def put(self, key: str, latents: SourceLatents, metadata: Mapping[str, str] | None = None) -> None:
        """Keep an entry in RAM and on disk, where the budget is large enough. metadata: for its file's header."""
        with self._lock:
            self._keep(key, latents)
            if self.folder is not None:
                self.folder.put(key, latents, metadata or {})

    def trim(self) -> None:
        """Drop what exceeds the budgets."""
        with self._lock:
            self._trim_ram()
            if self.folder is not None:
                self.folder.trim()

    def clear(self) -> None:
        """Drop every entry, in RAM and in the folder."""
        with self._lock:
            self._entries.clear()
            if self.folder is not None:
                self.folder.clear()

    def _keep(self, key: str, latents: SourceLatents) -> None:
        self._entries.pop(key, None)
        if latents.nbytes <= self.budget:
            self._entries[key] = latents
        self._trim_ram()

    def _trim_ram(self) -> None:
        while self.nbytes > self.budget:
            self._entries.popitem(last=False)
