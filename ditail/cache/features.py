"""Hot features: what the target U-Net computed on the source latents, kept for the next generation."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from threading import RLock

import torch
from torch import Tensor


class FeatureCache:
    """Features per key and step, the least recently used keys dropped first once they exceed `budget` bytes.

    A step is kept whole or not at all, so a key that doesn't fit is kept as far as it does: the steps that are missing
    are computed. device: where the tensors are kept. Any thread may call any method.
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
        """What is kept of a step, by layer."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key, {}).get(step)

    def put(self, key: Hashable, step: Hashable, tensors: Mapping[str, Tensor]) -> bool:
        """Keep a copy of a step's tensors, at the cost of other keys; False where it doesn't fit."""
        size = _nbytes(tensors)
        with self._lock:
            self._forget_step(key, step)
            room = self.budget - _nbytes_of_steps(self._entries.get(key, {}))
            if size > room:
                return False
            self._entries.setdefault(key, {})
            self._entries.move_to_end(key)
            self._make_room(self.budget - size)
            try:
                copies = {n: t.detach().to(self.device, copy=True) for n, t in tensors.items()}
            except torch.cuda.OutOfMemoryError:
                self.clear()  # the image itself needs the memory
                return False
            self._entries[key][step] = copies
            self.nbytes += size
            return True

    def resize(self, budget: int, device: str | torch.device) -> None:
        """Change the budget, dropping what exceeds it, and the place, where nothing is kept yet."""
        with self._lock:
            if torch.device(device) != self.device:
                self.clear()
            self.budget, self.device = budget, torch.device(device)
            self._make_room(budget)

    def drop(self, key: Hashable) -> None:
        """Forget all steps of a key; nothing happens where there are none."""
        with self._lock:
            self.nbytes -= _nbytes_of_steps(self._entries.pop(key, {}))

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def _make_room(self, budget: int) -> None:
        while self.nbytes > budget:
            self.drop(next(iter(self._entries)))

    def _forget_step(self, key: Hashable, step: Hashable) -> None:
        self.nbytes -= _nbytes(self._entries.get(key, {}).pop(step, {}))


class Features:
    """One key's part of a `FeatureCache`, to be handed to an `Injection`.

    The key must cover: the target's weights with LoRAs and their weights, hypernetworks, token merging, precision, the
    source latents (their own key; of a mix each one's, in order), the null prompt and its size conditioning. The
    injection itself adds timestep, size, dtype, layers and which sources of a mix take part, and keeps nothing while
    others' hooks or an inpainting model's own channels are at work.
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
