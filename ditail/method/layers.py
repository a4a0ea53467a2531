"""Custom layer selection as one line of text: `f4 a4-8 a9-11@0-0.3`.

Terms are separated by spaces (X/Y/Z axes split their values on commas). `f` stands for the feature of an output block's
ResBlock, `a` for the queries and keys of its self-attentions; a number or `first-last` gives the blocks; `@from-to` is
their own range of the steps, as fractions from the first step (the largest timestep) on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import DitailError, named

FEATURE, ATTENTION = "f", "a"
# Every feature and attention of SD's 12 output blocks with a range each takes under 500 characters.
MAX_LENGTH = 1000
TERM = re.compile(r"([fa])([0-9]{1,2})(?:-([0-9]{1,2}))?(?:@([0-9.]{1,20})-([0-9.]{1,20}))?")
NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


@dataclass(frozen=True)
class Layer:
    """What is injected in one output block: its feature (kind "f"), or q and k of its self-attentions ("a")."""

    kind: str
    block: int


Steps = tuple[float, float]
Layers = Mapping[Layer, Steps | None]


def parse_layers(text: str) -> Layers:
    """The layers that a text names, each with its range of the steps (None = by the ratio of its kind); empty for "".

    Raises DitailError naming the term that is wrong. `sites.find_sites` checks that a U-Net has the layers.
    """
    if not isinstance(text, str):
        raise DitailError("layers", f"must be a text, got {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise DitailError("layers", f"has {len(text)} characters, at most {MAX_LENGTH} are possible")
    layers = {}
    for term in text.split():
        kind, blocks, steps = _parse_term(term)
        for block in blocks:
            if Layer(kind, block) in layers:
                raise _error(term, f"{kind}{block} is named twice")
            layers[Layer(kind, block)] = steps
    return layers


def _parse_term(term: str) -> tuple[str, range, Steps | None]:
    if term[0] not in (FEATURE, ATTENTION):
        raise _error(term, "must begin with f (feature) or a (attention)")
    match = TERM.fullmatch(term)
    if not match:
        raise _error(term, "must look like f4, a4-8 or a9-11@0-0.3, with spaces between terms")
    kind, first, last, begin, end = match.groups()
    first, last = int(first), int(last or first)
    if last < first:
        raise _error(term, f"block {last} comes before block {first}")
    steps = (_fraction(term, begin), _fraction(term, end, begin)) if begin else None
    return kind, range(first, last + 1), steps


def _fraction(term: str, text: str, begin: str | None = None) -> float:
    if not NUMBER.fullmatch(text) or not 0 <= float(text) <= 1:
        raise _error(term, f"{text} is not a number from 0 to 1")
    if begin and float(text) <= float(begin):
        raise _error(term, f"the range of steps must end after {begin}")
    return float(text)


def _error(term: str, what: str) -> DitailError:
    return DitailError("layers", f'"{named(term)}": {what}')
