"""Source latents `z_t`: kept per timestep, looked up at any, saved with what they depend on, cached."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import DitailError
from .schedule import TRAINING_STEPS, alphas_cumprod_at

if TYPE_CHECKING:
    from .disk import LatentFolder

FORMAT = "ditail source latents 1"


class SourceLatents:
    """The VP latents of a source model, one per timestep.

    timesteps: `[N]`, ascending. latents: `[N, b, c, h, w]`, kept on the CPU in the dtype given.
    alphas_cumprod: the source model's schedule, `[1000]`. picture: what the latents end in, `[h, w, 3]` uint8, where
    the source model generated it.
    """

    def __init__(self, timesteps: Sequence[float], latents: Tensor, alphas_cumprod: Tensor, *,
                 picture: Tensor | None = None):
        if latents.ndim != 5 or len(timesteps) != len(latents) or not len(latents):
            raise DitailError(f"source latents: {len(timesteps)} timesteps for latents {tuple(latents.shape)}")
        if picture is not None and (picture.ndim, picture.shape[-1], picture.dtype) != (3, 3, torch.uint8):
            raise DitailError(f"source latents: a picture is [h, w, 3] uint8, not {tuple(picture.shape)} "
                              f"{picture.dtype}")
        order = sorted(range(len(timesteps)), key=lambda i: float(timesteps[i]))
        self.timesteps = torch.tensor([float(timesteps[i]) for i in order], dtype=torch.float64)
        self.latents = latents.detach().cpu()[order]
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        self.picture = None if picture is None else picture.detach().cpu()
        abar = alphas_cumprod_at(self.alphas_cumprod, self.timesteps)
        self._sigmas = torch.sqrt((1 - abar) / abar)

    def __len__(self) -> int:
        return len(self.timesteps)

    def with_picture(self, picture: Tensor) -> "SourceLatents":
        """The same latents with the picture that they end in."""
        return SourceLatents(self.timesteps.tolist(), self.latents, self.alphas_cumprod, picture=picture)

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + (0 if self.picture is None else self.picture.nbytes)

    def at(self, timestep: float) -> Tensor:
        """`z_t` `[b, c, h, w]` at any timestep, float32; outside the stored range, the nearest stored latent.

        Between two stored steps `z_t / sqrt(abar_t)` is linear in `sigma_t`. That is the DDIM equation itself, so
        for inverted latents the result is what DDIM inversion would have passed through.
        """
        t = float(timestep)
        # A sampler's float is not quite the stored one; latents that are there are not to be interpolated.
        high = int(torch.searchsorted(self.timesteps, torch.tensor(t, dtype=torch.float64)))
        for i in (high, high - 1):
            if 0 <= i < len(self) and abs(float(self.timesteps[i]) - t) < 1e-3:
                return self.latents[i].float()
        if high == 0 or high == len(self):
            return self.latents[min(high, len(self) - 1)].float()
        low = high - 1
        abar = alphas_cumprod_at(self.alphas_cumprod, torch.tensor([t], dtype=torch.float64))
        sigma = torch.sqrt((1 - abar) / abar)
        s_low, s_high = self._sigmas[low], self._sigmas[high]
        weight = float((sigma - s_low) / (s_high - s_low))
        z_low = self.latents[low].float() * float(torch.sqrt(1 + s_low**2))
        z_high = self.latents[high].float() * float(torch.sqrt(1 + s_high**2))
        return torch.lerp(z_low, z_high, weight) * float(torch.sqrt(abar))

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file, whole or not at all; readable in its header: `metadata`, format and checksum."""
        tensors = {"timesteps": self.timesteps, "latents": self.latents, "alphas_cumprod": self.alphas_cumprod}
        if self.picture is not None:
            tensors["picture"] = self.picture
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        part = Path(f"{path}.{uuid4().hex}.part")
        try:
            part.write_bytes(save(tensors, {**(metadata or {}), "format": FORMAT, "sha256": latents_key(tensors)}))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> tuple["SourceLatents", dict[str, str]]:
        """Read what `save` wrote: (latents, metadata). Raises DitailError for anything else and for damaged files."""
        try:
            data = Path(path).read_bytes()  # at once, as another process may replace or delete the file
            tensors = load(data)
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
            if metadata.pop("format", None) != FORMAT:
                raise DitailError("another format")
            checksum = latents_key(tensors)
            parts = [tensors[name] for name in ("timesteps", "latents", "alphas_cumprod")]
            if metadata.pop("sha256", checksum) != checksum or not _are_sound(*parts):
                raise DitailError("damaged")
            return cls(parts[0].tolist(), *parts[1:], picture=tensors.get("picture")), metadata
        except (SafetensorError, OSError, KeyError, DitailError) as error:
            raise DitailError(f"{path}: can't be read as source latents ({error})") from error


def _are_sound(timesteps: Tensor, latents: Tensor, alphas_cumprod: Tensor) -> bool:
    """Whether tensors from a file can be those of source latents."""
    return (
        (timesteps.ndim, latents.ndim, alphas_cumprod.shape) == (1, 5, (TRAINING_STEPS,))
        and all(t.double().isfinite().all() for t in (timesteps, latents, alphas_cumprod))
    )


def latents_key(depends_on: Mapping) -> str:
    """A cache key: the SHA-256 of everything that source latents depend on, as canonical JSON.

    Tensors count by dtype, shape and bytes; floats exactly (by `repr`). Raises TypeError for what JSON can't say.
    """
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=_describe).encode()).hexdigest()


def _describe(value) -> list:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} can't be part of a cache key")
    data = value.detach().cpu().contiguous()
    content = data.flatten().view(torch.uint8).numpy().tobytes()
    return [str(data.dtype), list(data.shape), hashlib.sha256(content).hexdigest()]


class LatentCache:
    """Source latents in RAM and, with a `folder`, on disk too.

    In RAM the least recently used are dropped first once they exceed `budget` bytes; the folder has its own budget.
    Whoever changes a budget calls `trim`. Any thread may call any method.
    """

    def __init__(self, budget: int, folder: "LatentFolder | None" = None):
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
        """An entry from RAM, else from the folder (and then kept in RAM, too), else None."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                if self.folder is not None:
                    self.folder.touch(key)
            elif self.folder is not None and (found := self.folder.get(key)):
                self._keep(key, found)
            return found

    def put(self, key: str, latents: SourceLatents, metadata: Mapping[str, str] | None = None) -> None:
        """Keep an entry; one larger than a whole budget is not kept there. metadata: what its file is to say of it."""
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
