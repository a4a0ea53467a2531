"""The prompt of a content image, from its infotext or from one of the WebUI's interrogators."""

import re
from collections.abc import Callable
from importlib.util import find_spec

from modules import images, infotext_utils, sd_models, shared
from PIL import Image

from ..content.images import read_image
from ..errors import DitailError

HAS_DEEPBOORU = find_spec("modules.deepbooru") is not None
FAILED = "<error>"  # in the answer of the WebUI's interrogator after an error

# (prompt, negative prompt, title of the checkpoint); None = unknown.
Description = tuple[str, str | None, str | None]


def describe(image: Image.Image | None, caption: Callable[[Image.Image], str] | None,
             ) -> tuple[str | None, str | None, str | None]:
    """The description of an image, with None for what is unknown. Raises DitailError.

    caption: the interrogator for an image without infotext; None = do not interrogate.
    """
    if image is None:
        raise DitailError("image", "choose one first")
    return from_infotext(image) or (caption and _interrogate(caption, read_image(image)), None, None)


def from_infotext(image: Image.Image) -> Description | None:
    """The description in an image's infotext; None if it has none."""
    text, _ = images.read_info_from_image(image.copy())
    if not (text or "").strip():
        return None
    prompt, negative = _prompts_of(text)
    return (prompt, negative, _title_of_checkpoint(text)) if prompt else None


def _prompts_of(text: str) -> tuple[str, str]:
    """The prompt and negative prompt of infotext, with the words of styles, which the WebUI's own parser takes out."""
    *lines, settings = text.strip().splitlines()
    if len(infotext_utils.re_param.findall(settings)) < 3:
        lines.append(settings)
    prompt, *negative = re.split("^Negative prompt:", "\n".join(line.strip() for line in lines), maxsplit=1, flags=re.M)
    return prompt.strip(), "".join(negative).strip()


def _title_of_checkpoint(text: str) -> str | None:
    """The title of the checkpoint that infotext names; None for none that is there."""
    # Read here, as Forge's parsed infotext lacks the name if that checkpoint is the one in use.
    values = dict(infotext_utils.re_param.findall(text.strip().splitlines()[-1]))
    for key in ("Model hash", "Model"):
        if info := sd_models.get_closet_checkpoint_match(infotext_utils.unquote(values.get(key, ""))):
            return info.title
    return None


def _interrogate(caption: Callable[[Image.Image], str], image: Image.Image) -> str:
    try:
        text = caption(image)
    except Exception as error:  # a failed download, out of memory, ...
        raise DitailError("source_prompt", f"the interrogator has failed ({error})") from error
    if not text or FAILED in text:
        raise DitailError("source_prompt", "the interrogator has failed; the console says why")
    return text


def from_clip(image: Image.Image) -> str:
    return shared.interrogator.interrogate(image)


def from_deepbooru(image: Image.Image) -> str:
    from modules import deepbooru

    return deepbooru.model.tag(image)
