"""The prompt of a content image by itself: from its own infotext, else from the WebUI's interrogators."""

from collections.abc import Callable
from importlib.util import find_spec

from modules import images, infotext_utils, sd_models, shared
from PIL import Image

from ..errors import DitailError

HAS_DEEPBOORU = find_spec("modules.deepbooru") is not None
FAILED = "<error>"  # what the WebUI's interrogator ends its answer with

# (prompt, negative prompt, title of the checkpoint); None: not known.
Description = tuple[str, str | None, str | None]


def describe(image: Image.Image | None, caption: Callable[[Image.Image], str] | None,
             ) -> tuple[str | None, str | None, str | None]:
    """What an image shows, as a Description that may be empty. Raises DitailError.

    caption: asked where the image has no infotext; None for nobody.
    """
    if image is None:
        raise DitailError("image", "choose one first")
    known = from_infotext(image)
    return known or (caption and _said(caption, image.convert("RGB")), None, None)


def from_infotext(image: Image.Image) -> Description | None:
    """What an image's own infotext says; None if it has none."""
    text, _ = images.read_info_from_image(image.copy())
    if not text:
        return None
    params = infotext_utils.parse_generation_parameters(text, [])
    if not params.get("Prompt"):
        return None
    return params["Prompt"], params.get("Negative prompt", ""), _title_of_checkpoint(text)


def _title_of_checkpoint(text: str) -> str | None:
    """The title of the checkpoint that infotext names; None for none that is there."""
    # Read here, as Forge's parsed infotext lacks the name if that checkpoint is the one in use.
    values = dict(infotext_utils.re_param.findall(text.strip().splitlines()[-1]))
    for key in ("Model hash", "Model"):
        if info := sd_models.get_closet_checkpoint_match(infotext_utils.unquote(values.get(key, ""))):
            return info.title
    return None


def _said(caption: Callable[[Image.Image], str], image: Image.Image) -> str:
    try:
        text = caption(image)
    except Exception as error:  # a download that failed, a model that doesn't fit
        raise DitailError("source_prompt", f"the interrogator has failed ({error})") from error
    if not text or FAILED in text:
        raise DitailError("source_prompt", "the interrogator has failed; the console says why")
    return text


def from_clip(image: Image.Image) -> str:
    return shared.interrogator.interrogate(image)


def from_deepbooru(image: Image.Image) -> str:
    from modules import deepbooru

    return deepbooru.model.tag(image)
