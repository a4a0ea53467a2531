"""Feature cache: what the target U-Net computed on the source latents, for later generations."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from threading import RLock

import torch
from torch import Tensor


class FeatureCache:
    """Features per key and step, the least recently used keys dropped first once they exceed `budget` bytes.

    A step is kept whole or not at all. If not all steps of a key fit, the others are computed each time. device: where
    the tensors are kept. Thread-safe.
    """

    def __init__(self, budget: int, device: str | torch.device = "cpu"):
        self.budget, self.device = budget, torch.device(device)
        self._entries: OrderedDict[Hashable, dict[Hashable, dict[str, Tensor]]] = OrderedDict()
        self._lock = RLock()
        self.nbytes = 0

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._entries.values()))

    def under(self, key: Hashable) -> "Features":
        """The part of the cache for one key, which must name all that the features depend on (see `Features`)."""
        return Features(self, key)

    def get(self, key: Hashable, step: Hashable) -> Mapping[str, Tensor] | None:
        """The tensors of a step by layer, or None."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key, {}).get(step)

    def put(self, key: Hashable, step: Hashable, tensors: Mapping[str, Tensor]) -> bool:
        """Keep a copy of a step's tensors, dropping other keys for it; returns False if it doesn't fit."""
        size = _nbytes(tensors)
        with self._lock:
            self._drop_step(key, step)
            room = self.budget - _nbytes_of_steps(self._entries.get(key, {}))
            if size > room:
                return False
            self._entries.setdefault(key, {})
            self._entries.move_to_end(key)
            self._make_room(self.budget - size)
            try:
                copies = {n: t.detach().to(self.device, copy=True) for n, t in tensors.items()}
            except torch.cuda.OutOfMemoryError:
                self.clear()  # generating the image needs the memory
                return False
            self._entries[key][step] = copies
            self.nbytes += size
            return True

    def resize(self, budget: int, device: str | torch.device) -> None:
        """Change budget and device: what exceeds the budget is dropped, and everything if the device is another."""
        with self._lock:
            if torch.device(device) != self.device:
                self.clear()
            self.budget, self.device = budget, torch.device(device)
            self._make_room(budget)

    def drop(self, key: Hashable) -> None:
        """Drop all steps of a key, if there are any."""
        with self._lock:
            self.nbytes -= _nbytes_of_steps(self._entries.pop(key, {}))

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def _make_room(self, budget: int) -> None:
        while self.nbytes > budget:
            self.drop(next(iter(self._entries)))

    def _drop_step(self, key: Hashable, step: Hashable) -> None:
        self.nbytes -= _nbytes(self._entries.get(key, {}).pop(step, {}))


class Features:
    """The part of a `FeatureCache` for one key, as an `Injection` takes it.

    The key must cover: the target's weights with LoRAs and their weights, hypernetworks, token merging, precision, the
    source latents (their cache keys, for a mix in order), the null prompt and its size conditioning. The injection
    itself adds timestep, size, dtype, device, layers and the sources that take part, and keeps nothing while the U-Net
    has hooks of others or an inpainting model's additional channels.
    """

    def __init__(self, cache: FeatureCache, key: Hashable):
        self.cache, self.key = cache, key

    def get(self, step: Hashable) -> Mapping[str, Tensor] | None:
        return self.cache.get(self.key, step)

    def put(self, step: Hashable, tensors: Mapping[str, Tensor]) -> bool:
        return self.cache.put(self.key, step, tensors)


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.nbytes for t in tensors.values())


def _nbytes_of_steps(steps: Mapping[Hashable, Mapping[str, Tensor]]) -> int:
    return sum(map(_nbytes, steps.values()))
