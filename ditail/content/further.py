"""Further sources of a mix, as the API's `sources` describes them."""

from dataclasses import dataclass, replace

from PIL import Image

from ..errors import DitailError
from .lists import check_fractions, check_image, check_mask, check_setting, parse_objects
from .settings import DitailSettings, setting, table_of

MAX_SOURCES = 8


@dataclass(frozen=True)
class FurtherSource:
    """A further source. The keys of the main source's settings have the same meaning here.

    image: None for the main content image. weight: relative to the main source's 1. mask: white = this source, None =
    everywhere. steps: its range of the steps, as fractions counted from the first step.
    """

    source: str = DitailSettings.source
    image: Image.Image | None = None
    source_checkpoint: str = DitailSettings.source_checkpoint
    source_vae: str = DitailSettings.source_vae
    source_prompt: str = DitailSettings.source_prompt
    source_negative_prompt: str = DitailSettings.source_negative_prompt
    weight: float = setting(1.0, "Weight", "This source's weight among the others.", low=0.0, high=10.0)
    mask: Image.Image | None = None
    steps: tuple[float, float] = (0.0, 1.0)


WEIGHT = table_of(FurtherSource)["weight"]


def parse_sources(values) -> tuple[FurtherSource, ...]:
    """The further sources of a list of objects; empty for None. Raises DitailError naming the entry and its key."""
    return tuple(FurtherSource(**keys) for keys in parse_objects(values, "sources", CHECKS, MAX_SOURCES))


def _check_weight(name: str, value) -> float:
    return replace(WEIGHT, key=name).check(value)


def _check_steps(name: str, value) -> tuple[float, ...]:
    begin, end = check_fractions(name, value, 2)
    if end <= begin:
        raise DitailError(name, f"must end after its beginning, got [{begin:g}, {end:g}]")
    return begin, end


CHECKS = {
    "source": check_setting, "image": check_image, "source_checkpoint": check_setting, "source_vae": check_setting,
    "source_prompt": check_setting, "source_negative_prompt": check_setting, "weight": _check_weight,
    "mask": check_mask, "steps": _check_steps,
}
