"""Cache keys and file fingerprints."""

import hashlib
import json
import os
from collections.abc import Mapping

import torch
from torch import Tensor


def cache_key(depends_on: Mapping) -> str:
    """A cache key: the SHA-256 of everything that source latents depend on, as canonical JSON.

    Tensors are compared by dtype, shape and bytes, floats exactly (by `repr`). Raises TypeError for any other value
    that JSON can't represent.
    """
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=_describe).encode()).hexdigest()


def _describe(value) -> list:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} can't be part of a cache key")
    data = value.detach().cpu().contiguous()
    content = data.flatten().view(torch.uint8).numpy().tobytes()
    return [str(data.dtype), list(data.shape), hashlib.sha256(content).hexdigest()]


def file_fingerprint(path: str | None) -> list:
    """[absolute path, size, modification time in ns] of a file; `[path]` if it does not exist."""
    if not path or not os.path.isfile(path):
        return [path]
    stat = os.stat(path)
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
