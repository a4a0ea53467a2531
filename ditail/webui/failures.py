"""Showing errors to the user: the API names keys, the tab labels."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

from ..content.settings import BY_KEY
from ..errors import DitailError

log = logging.getLogger("ditail")

# The tab's labels of keys that are not settings, and of keys of list entries.
LABELS = {
    "args": "Settings", "sources": "Second source", "collage": "Collage", "box": "Box", "weight": "Weight",
    "steps": "Begin and end", "checkpoints": "Models of the matrix", "further": "Further models",
    "one_source": "One row", "margin": "Grid margins", "script_args": "Script", "sd_unet": "SD Unet",
    "init_images": "img2img", "folder": "Ditail folder", "files": "Ditail folder", "prompts": "Prompt of each image",
    "refiner_checkpoint": "Refiner", "hr_checkpoint_name": "Hires checkpoint",
}
ENTRY = re.compile(r"(\w+)\[(\d+)\]")


class Ditail(Exception):
    """A DitailError for the tab. The WebUI shows an exception's class and text, so the class is named "Ditail"."""


def label_of(key: str) -> str:
    """The tab's label of a key: "Collage, image 1, Box" for `collage[0].box`."""
    words = []
    for part in key.split("."):
        entry = ENTRY.fullmatch(part)
        name = entry[1] if entry else part
        words.append(LABELS.get(name) or (BY_KEY[name].label if name in BY_KEY else name))
        if entry and name == "collage":
            words.append(f"image {int(entry[2]) + 1}")
    return ", ".join(words)


def in_words(error: DitailError) -> str:
    """An error with the tab's labels in place of keys."""
    sentence = re.sub(r"`(\w+)`", lambda key: f'"{label_of(key[1])}"', error.sentence)
    return sentence if error.key is None else f"{label_of(error.key)}: {sentence}"


@contextmanager
def errors_for_the_user(p) -> Iterator[None]:
    """A context that turns a DitailError into HTTP 422 if job `p` came from the API, else into `Ditail` for the tab."""
    try:
        yield
    except DitailError as error:
        log.error("%s", error)
        if getattr(p, "is_api", False):
            raise HTTPException(status_code=422, detail=str(error)) from error
        raise Ditail(in_words(error)) from error
