"""Savings: what a U-Net need not compute because injection overwrites it, or computes the same for every row.

The hooks of `injection.py` alone give the right result; shortcuts only make it cheaper. Each one replaces the `forward`
of one module instance until it is removed, and passes every call that it can't answer exactly to the class's own
`forward`, so that the hooks handle it. This is decided for each call and each layer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Without a fused kernel for values wider than the keys, the scores are kept in memory: at most this many at once.
SCORES_AT_ONCE = 2**26
# A ResBlock or CrossAttention with ldm's attributes; its class differs by host.
LdmModule = Any


@dataclass(frozen=True)
class Trusted:
    """The Python modules whose functions a shortcut may replace; by default those of ldm and sgm.

    attention: its `forward` is softmax(q k^T / sqrt(d)) v, as `attend` computes it. resblock: its `forward` is
    `skip_connection(x) + out_layers(...)`. movers: their pre-hooks move modules between CPU and GPU, and change no
    value. unread: the name of an argument that both get and do not read themselves, and the keys of it that do change
    what a ResBlock computes.
    """

    attention: Collection[str] = ("ldm.modules.attention", "sgm.modules.attention")
    resblock: Collection[str] = ("ldm.modules.diffusionmodules.openaimodel",
                                 "sgm.modules.diffusionmodules.openaimodel")
    movers: Collection[str] = ()
    unread: tuple[str, Collection[str]] = ("", ())


@dataclass(frozen=True)
class Savings:
    """Which work is left out. With everything off only the hooks work; the results are the same up to rounding.

    early_exit: the source run ends after the last layer that is needed.
    skip_dead: rows don't compute the q, k and feature that injection overwrites.
    share_attention: softmax(q k^T) is computed once for all rows that take it from one source row.
    upcast_attention: compute the shared attention in float32 (set it where the host's own attention does).
    trusted: whose functions may be replaced.
    """

    early_exit: bool = True
    skip_dead: bool = True
    share_attention: bool = True
    upcast_attention: bool = False
    trusted: Trusted = Trusted()


class CurrentInjection(Protocol):
    """The injection as the shortcuts see it: what the current call of the U-Net injects."""

    savings: Savings

    def replaces(self, *keys: str) -> bool:
        """Whether the current call overwrites these layers completely (no mask)."""

    def recorded(self, key: str, module: nn.Module) -> Tensor:
        """The recorded output of a layer for the source rows."""

    def recorded_rows(self, recorded: Tensor, rows: int) -> Sequence[int] | None:
        """The row of `recorded` for each of `rows` rows (any, if it is uninjected); None if they don't match."""

    def uninjected(self, rows: int) -> list[bool]:
        """For each of `rows` rows of the current call, whether it is without injection; empty if no row is injected."""

    def only_rows(self, injected: bool) -> AbstractContextManager[None]:
        """A context in which modules are called only with the injected rows, or only with the others."""

    def has_common_input(self, attention: str) -> bool:
        """Whether an attention's to_q and to_k were called with the same tensor (no hypernetwork in between)."""

    def owns(self, hook_id: int) -> bool:
        """Whether a hook is Ditail's."""


class Shortcut:
    """A context that replaces `module.forward`.

    fast: called with the injected rows only; returns the output, or None to call the class's `forward` instead.
    """

    def __init__(self, injection: CurrentInjection, module: nn.Module, fast: Callable[..., Tensor | None]):
        self.injection, self.module = injection, module
        self.fast: Callable[..., Tensor | None] | None = fast

    def __enter__(self) -> "Shortcut":
        self.module.forward = self
        return self

    def __call__(self, *args, **kwargs) -> Tensor:
        output = self._shortened(self.fast, args, kwargs) if self.fast else None
        return self._forward(args, kwargs) if output is None else output

    def _forward(self, args: Sequence, kwargs: Mapping) -> Tensor:
        return type(self.module).forward(self.module, *args, **kwargs)

    def _shortened(self, fast: Callable[..., Tensor | None], args: Sequence, kwargs: Mapping) -> Tensor | None:
        uninjected = self.injection.uninjected(len(args[0])) if args else []
        if not any(uninjected):
            return fast(*args, **kwargs)
        injected = [i for i, is_uninjected in enumerate(uninjected) if not is_uninjected]
        others = [i for i, is_uninjected in enumerate(uninjected) if is_uninjected]
        with self.injection.only_rows(injected=True):
            output = fast(*_rows_of(args, injected), **_rows_of(kwargs, injected))
        if output is None:
            return None
        with self.injection.only_rows(injected=False):
            rest = self._forward(_rows_of(args, others), _rows_of(kwargs, others))
        joined = rest.new_empty(len(uninjected), *rest.shape[1:])
        joined[injected], joined[others] = output, rest
        return joined

    def __exit__(self, *_) -> None:
        """Restore `module.forward`. Should another extension have wrapped this object, it passes calls on."""
        self.fast = None
        if self.module.__dict__.get("forward") is self:
            del self.module.forward


def shortcuts(injection: CurrentInjection, features: Sequence[tuple[str, nn.Module]],
              attention: Sequence[tuple[str, nn.Module]]) -> list:
    """The shortcuts that `injection.savings` switches on; each is a context.

    features: (layer, the ResBlock whose `out_layers` it is). attention: (name, `attn1`); its layers are `<name>.to_q`
    and `<name>.to_k`. A module whose `forward` another extension has replaced gets none.
    """
    functions = []
    if injection.savings.skip_dead:
        functions += [(block, _skip_main_path(injection, block, key)) for key, block in features]
        for name, attn1 in attention:
            for part in ("to_q", "to_k"):
                projection = getattr(attn1, part)
                functions.append((projection, _skip_projection(injection, projection, f"{name}.{part}")))
    if injection.savings.share_attention:
        functions += [(attn1, _share(injection, attn1, name)) for name, attn1 in attention]
    return [Shortcut(injection, module, fast) for module, fast in functions if "forward" not in module.__dict__]


def _rows_of(values, rows: Sequence[int]):
    """A call's arguments for the given rows; arguments that are not tensors stay as they are."""
    if isinstance(values, Mapping):
        return {key: value[rows] if isinstance(value, Tensor) else value for key, value in values.items()}
    return [value[rows] if isinstance(value, Tensor) else value for value in values]


def _skip_projection(injection: CurrentInjection, projection: nn.Module, key: str):
    def fast(*args, **kwargs) -> Tensor | None:
        if len(args) != 1 or kwargs or not injection.replaces(key) or hooked(injection, projection):
            return None
        x, = args
        recorded = injection.recorded(key, projection)
        source_rows = injection.recorded_rows(recorded, len(x))
        return None if source_rows is None or recorded.shape[1:-1] != x.shape[1:-1] else spread(recorded, source_rows)

    return fast


def _skip_main_path(injection: CurrentInjection, block: LdmModule, key: str):
    trusted = injection.savings.trusted

    def fast(x: Tensor, *args, **kwargs) -> Tensor | None:
        if not injection.replaces(key) or getattr(block, "updown", False) or "_forward" in block.__dict__:
            return None
        if not is_from(type(block).forward, trusted.resblock) or hooked(injection, *_main_path(block)):
            return None
        if any(key in given for given in (*args, *kwargs.values()) if isinstance(given, Mapping)
               for key in trusted.unread[1]):
            return None
        recorded = injection.recorded(key, block.out_layers)
        source_rows = injection.recorded_rows(recorded, len(x))
        if source_rows is None or recorded.shape[2:] != x.shape[2:]:
            return None
        return block.skip_connection(x) + spread(recorded, source_rows)

    return fast


def _main_path(block: LdmModule) -> list[nn.Module]:
    return [m for part in (block.in_layers, block.emb_layers, block.out_layers) for m in part.modules()]


def _share(injection: CurrentInjection, attn1: LdmModule, name: str):
    keys, trusted = (f"{name}.to_q", f"{name}.to_k"), injection.savings.trusted

    def fast(x: Tensor, *args, **kwargs) -> Tensor | None:
        given = [*args, *(value for key, value in kwargs.items() if key != trusted.unread[0])]
        if not injection.replaces(*keys) or any(map(is_given, given)):
            return None  # a prompt, a mask, sgm's additional tokens
        if not is_from(type(attn1).forward, trusted.attention) or hooked(injection, attn1.to_q, attn1.to_k):
            return None
        # Some other devices (MPS) do not support values wider than the keys.
        if x.device.type not in ("cpu", "cuda", "meta") or not injection.has_common_input(name):
            return None
        q, k = injection.recorded(keys[0], attn1.to_q), injection.recorded(keys[1], attn1.to_k)
        source_rows = injection.recorded_rows(q, len(x))
        if source_rows is None or q.shape[1] != x.shape[1]:
            return None
        v = attn1.to_v(x)
        scale = getattr(attn1, "scale", None)
        out = share_probabilities(q, k, v, attn1.heads, source_rows, scale, injection.savings.upcast_attention)
        return attn1.to_out(out)

    return fast


def share_probabilities(q: Tensor, k: Tensor, v: Tensor, heads: int, source_rows: Sequence[int],
                        scale: float | None = None, upcast: bool = False) -> Tensor:
    """softmax(scale q k^T) v, one softmax for all rows of `v` `[rows, n, c]` that share a row of `q`, `k` `[b, n, c]`.

    source_rows: the row of `q` and `k` for each row of `v`. scale: default 1 / sqrt(c / heads). Returns `[rows, n, c]`.
    """
    if len(q) == 1:
        return attend(q, k, v, heads, scale, upcast)
    out = torch.empty_like(v)
    for source_row in set(source_rows):
        rows = [row for row, its_source in enumerate(source_rows) if its_source == source_row]
        one_row = slice(source_row, source_row + 1)
        out[rows] = attend(q[one_row], k[one_row], v[rows], heads, scale, upcast)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None, upcast: bool) -> Tensor:
    """Attention with one `q`, `k` `[1, n, c]` for all rows of `v` `[rows, n, c]`, concatenated in each head."""
    # The CPU has no fused kernel here and would keep probabilities in 16 bits; CUDA's kernels keep them in 32.
    dtype = torch.float32 if upcast or q.device.type == "cpu" else v.dtype
    q, k = (x.to(dtype).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    side_by_side = v.to(dtype).unflatten(-1, (heads, -1)).permute(2, 1, 0, 3).flatten(2)[None]
    queries = max(1, SCORES_AT_ONCE // (heads * k.shape[2]))
    with torch.autocast(v.device.type if v.device.type != "meta" else "cpu", enabled=False):
        out = torch.cat([F.scaled_dot_product_attention(part, k, side_by_side, scale=scale)
                         for part in q.split(queries, 2)], 2)
    return out[0].unflatten(-1, (len(v), -1)).permute(2, 1, 0, 3).flatten(2).to(v.dtype)


def spread(recorded: Tensor, source_rows: Sequence[int]) -> Tensor:
    """A tensor whose row `i` is `recorded[source_rows[i]]`; a view if `recorded` has one row."""
    if len(recorded) == 1:
        return recorded.expand(len(source_rows), *recorded.shape[1:])
    return recorded[torch.tensor(source_rows, device=recorded.device)]


def is_given(value) -> bool:
    """Whether an optional argument has a value other than its default (sgm passes None and 0)."""
    return isinstance(value, Tensor) or bool(value)


def is_from(function: Callable, modules: Collection[str]) -> bool:
    """Whether a function was defined in one of `modules`, by its globals: a wrapper may have copied its name."""
    return getattr(function, "__globals__", {}).get("__name__") in modules


def hooked(injection: CurrentInjection, *modules: nn.Module) -> bool:
    """Whether one of `modules` has a hook that is not Ditail's, which a shortcut would not call."""
    hook_ids = (i for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks) for i in hooks)
    return not all(map(injection.owns, hook_ids))


def is_untouched(unet: nn.Module, trusted: Trusted, injection: CurrentInjection | None = None) -> bool:
    """Whether `unet` has no hook and no replaced `forward` but those of Ditail (`injection`).

    Those of others may depend on things that are not in a cache key (a ControlNet's image, a random tiling).
    """
    def foreign(hooks: Mapping[int, Callable]) -> list[Callable]:
        return [hook for i, hook in hooks.items() if not (injection and injection.owns(i))]

    for module in unet.modules():
        attributes = module.__dict__
        if "_forward" in attributes or not isinstance(attributes.get("forward", None), Shortcut | None):
            return False
        if foreign(attributes["_forward_hooks"]):
            return False
        if not all(is_from(hook, trusted.movers) for hook in foreign(attributes["_forward_pre_hooks"])):
            return False
    return True
