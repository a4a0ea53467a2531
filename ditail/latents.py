"""Source latents `z_t`: kept per timestep, looked up at any, saved with what they depend on, cached."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import DitailError
from .schedule import alphas_cumprod_at

FORMAT = "ditail source latents 1"


class SourceLatents:
    """The VP latents of a source model, one per timestep.

    timesteps: `[N]`, ascending. latents: `[N, b, c, h, w]`, kept on the CPU in the dtype given.
    alphas_cumprod: the source model's schedule, `[1000]`.
    """

    def __init__(self, timesteps: Sequence[float], latents: Tensor, alphas_cumprod: Tensor):
        if latents.ndim != 5 or len(timesteps) != len(latents) or not len(latents):
            raise DitailError(f"source latents: {len(timesteps)} timesteps for latents {tuple(latents.shape)}")
        order = sorted(range(len(timesteps)), key=lambda i: float(timesteps[i]))
        self.timesteps = torch.tensor([float(timesteps[i]) for i in order], dtype=torch.float64)
        self.latents = latents.detach().cpu()[order]
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        abar = alphas_cumprod_at(self.alphas_cumprod, self.timesteps)
        self._sigmas = torch.sqrt((1 - abar) / abar)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes

    def at(self, timestep: float) -> Tensor:
        """`z_t` `[b, c, h, w]` at any timestep, float32; outside the stored range, the nearest stored latent.

        Between two stored steps `z_t / sqrt(abar_t)` is linear in `sigma_t`. That is the DDIM equation itself, so
        for inverted latents the result is what DDIM inversion would have passed through.
        """
        t = float(timestep)
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
        """Write a safetensors file whose readable metadata are `metadata` and the format's name."""
        tensors = {"timesteps": self.timesteps, "latents": self.latents.contiguous(),
                   "alphas_cumprod": self.alphas_cumprod}
        part = Path(f"{path}.part")
        save_file(tensors, part, {**(metadata or {}), "format": FORMAT})
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> tuple["SourceLatents", dict[str, str]]:
        """Read what `save` wrote: (latents, metadata). Raises DitailError for anything else."""
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                if metadata.pop("format", None) != FORMAT:
                    raise DitailError(f"{path}: not a file of source latents")
                tensors = {name: file.get_tensor(name) for name in ("timesteps", "latents", "alphas_cumprod")}
        except (SafetensorError, OSError) as error:
            raise DitailError(f"{path}: can't be read as source latents ({error})") from error
        return cls(tensors["timesteps"].tolist(), tensors["latents"], tensors["alphas_cumprod"]), metadata


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
    """Source latents in RAM, the least recently used dropped first once they exceed `budget` bytes."""

    def __init__(self, budget: int):
        self.budget = budget
        self._entries: OrderedDict[str, SourceLatents] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def get(self, key: str) -> SourceLatents | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, latents: SourceLatents) -> None:
        """Keep an entry; one larger than the whole budget is not kept."""
        self._entries[key] = latents
        self._entries.move_to_end(key)
        while self._entries and self.nbytes > self.budget:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()
