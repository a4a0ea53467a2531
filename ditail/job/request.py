"""The user's request for one job: settings checked, images read, names looked up. No model is loaded yet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from PIL import Image

from ..content.collage import Piece, parse_collage
from ..content.further import FurtherSource, parse_sources
from ..content.lists import check_image, check_mask
from ..content.settings import DitailSettings
from ..errors import DitailError
from .host import Checkpoint, Library

IMAGES = ("image", "mask")
SOURCE_KEYS = ("source", "source_checkpoint", "source_vae", "source_prompt", "source_negative_prompt")


@dataclass(frozen=True)
class Request:
    """Checked settings with images and checkpoints. checkpoint: the source checkpoint, None for the target itself."""

    settings: DitailSettings
    image: Image.Image | None
    mask: Image.Image | None
    checkpoint: Checkpoint | None
    vae: str
    further: tuple["FurtherRequest", ...] = ()
    collage: tuple[Piece, ...] = ()

    @classmethod
    def from_values(cls, values: Mapping, library: Library) -> "Request":
        """Settings by key, images as base64 or PIL images. Raises DitailError naming the key that can't be used."""
        values = dict(values)
        images = {key: values.pop(key, None) for key in IMAGES}
        encoded = {key: image for key, image in images.items() if not isinstance(image, Image.Image)}
        settings = DitailSettings.from_dict({**values, **encoded}, library.presets())
        if not settings.enabled:
            return cls(settings, None, None, None, "")
        collage = parse_collage(settings.collage)
        if collage and settings.source == "generate":
            raise DitailError("collage", 'makes a content image, so `source` must be "image"')
        further = tuple(_further(settings, source, i, library)
                        for i, source in enumerate(parse_sources(settings.sources)))
        return cls(
            settings, check_image("image", images["image"]), check_mask("mask", images["mask"]),
            library.find_checkpoint(settings.source_checkpoint), library.find_vae(settings.source_vae), further,
            collage,
        )

    def with_values(self, values: Mapping, library: Library) -> "Request":
        """The same request with other settings, whose names are looked up again."""
        settings = replace(self.settings, **values)
        return replace(self, settings=settings, checkpoint=library.find_checkpoint(settings.source_checkpoint),
                       vae=library.find_vae(settings.source_vae))


def _further(first: DitailSettings, source: FurtherSource, number: int, library: Library) -> "FurtherRequest":
    """A further source; settings that it has no key for are those of the first one."""
    settings = replace(first, **{key: getattr(source, key) for key in SOURCE_KEYS})
    try:
        request = Request(settings, source.image, source.mask, library.find_checkpoint(source.source_checkpoint),
                          library.find_vae(source.source_vae))
    except DitailError as error:
        # A host may name the file instead of a key; then it is the checkpoint's (its yaml, say).
        key = error.key if error.key in SOURCE_KEYS else "source_checkpoint"
        sentence = error.sentence if error.key in (None, key) else f"{error.key}: {error.sentence}"
        raise DitailError(f"sources[{number}].{key}", sentence) from error
    return FurtherRequest(request, source.weight, source.mask, source.steps)


@dataclass(frozen=True)
class FurtherRequest:
    """A further source of a mix. weight: relative to the first's 1. steps: its range, as fractions of the steps."""

    request: Request
    weight: float
    mask: Image.Image | None
    steps: tuple[float, float]
