"""The settings of a run: one frozen dataclass, whose fields are the table of settings, validated when it is built."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ..errors import DitailError, named, shown
from ..method.layers import parse_layers
from .presets import PRESETS, preset_of

# A path has at most 4096 characters on the systems that the WebUI runs on.
MAX_NAME = 4096


@dataclass(frozen=True)
class Field:
    """One setting. `low` and `high` bound a number; `choices` lists what a text may be (None: any text).

    `infotext` is the key in an image's infotext (None: not written there). `parse` raises DitailError for an invalid
    text. `max_length` bounds a text's number of characters (None: any).
    """

    key: str
    label: str
    default: bool | float | str | tuple | None
    help: str
    infotext: str | None = None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] | None = None
    parse: Callable[[str], object] | None = None
    max_length: int | None = None

    def check(self, value):
        """`value` in the field's type, or DitailError naming the key."""
        if self.default is None:
            if value is None or isinstance(value, str):
                return value or None  # "" is null
            raise self._error("must be a base64 image or null", value)
        if isinstance(self.default, tuple):
            return self._check_list(value)
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            raise self._error("must be true or false", value)
        if isinstance(self.default, float):
            return self._check_number(value)
        if not isinstance(value, str):
            raise self._error("must be a text", value)
        self._check_text(value)
        if self.choices and value not in self.choices:
            raise self._error("must be one of " + ", ".join(f'"{c}"' for c in self.choices), value)
        if self.parse:
            self.parse(value)
        return value

    def _check_text(self, value: str) -> None:
        if self.max_length is not None and len(value) > self.max_length:
            raise self._error(f"has {len(value)} characters, at most {self.max_length} are possible", value)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON may hold half of a surrogate pair; no tokenizer, file system or answer can.
            raise self._error("has a character that is no valid Unicode", value) from error

    def _check_list(self, value) -> tuple[dict, ...]:
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self._error("must be a list of objects", value)
        return tuple(value)

    def _check_number(self, value) -> float:
        limit = f"must be a number from {self.low:g} to {self.high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(limit, value)
        if not self.low <= value <= self.high:  # false for NaN, too
            raise self._error(limit, value)
        return float(value)

    def _error(self, what: str, value) -> DitailError:
        return DitailError(self.key, f"{what}, got {shown(value)}")


T = TypeVar("T")


def setting(default: T, label: str, help: str, infotext: str | None = None, **others: Any) -> T:
    """A dataclass field with the attributes of its `Field` as metadata."""
    return field(default=default, metadata={
        "default": default, "label": label, "help": help, "infotext": infotext, **others})


def table_of(data_class: type) -> dict[str, Field]:
    """The settings that a dataclass declares with `setting`, by key, in order."""
    return {f.name: Field(f.name, **f.metadata) for f in fields(data_class) if f.metadata}


@dataclass(frozen=True)
class DitailSettings:
    """A validated set of settings, and the table of them: `FIELDS`. Raises DitailError naming the key."""

    enabled: bool = setting(False, "Enable Ditail", "Take the content from a source and the style from this "
                            "checkpoint.")
    preset: str = setting("", "Preset", "Values of several settings under one name; settings that are given beside "
                          "it override it.", "Ditail preset", max_length=MAX_NAME)
    source: str = setting("image", "Source", "Where the content comes from: an image that is inverted, or one that "
                          "the source checkpoint generates.", "Ditail source", choices=("image", "generate"))
    image: str | None = setting(None, "Content image", "The image whose content is kept; in img2img the init image "
                                'if empty (null or "" in the API).')
    resize_mode: str = setting("crop", "Resize mode", "How a content image of other proportions is made to fit: cut "
                               "off, padded with its edge, or stretched.", "Ditail resize mode",
                               choices=("crop", "fill", "stretch"))
    source_checkpoint: str = setting("", "Source checkpoint", "The model that inverts the content image, or generates "
                                     "it; the target itself if none is chosen.", "Ditail source checkpoint",
                                     max_length=MAX_NAME)
    source_vae: str = setting("", "Source VAE", "The VAE that encodes the content image; Automatic is the WebUI's "
                              "choice.", "Ditail source VAE", max_length=MAX_NAME)
    source_prompt: str = setting("", "Source prompt", "What the content image shows, LoRA tags allowed; empty: the "
                                 "main prompt.", "Ditail source prompt")
    source_negative_prompt: str = setting("", "Source negative prompt", "Empty: the main negative prompt.",
                                          "Ditail source negative prompt")
    alpha: float = setting(3.0, "Alpha", "Weight of the prompt in the inversion: more keeps more structure, then "
                           "colours turn unnatural.", "Ditail alpha", low=0.0, high=10.0)
    beta: float = setting(0.5, "Beta", "Weight of the negative prompt in the inversion.", "Ditail beta", low=0.0,
                          high=10.0)
    conv_ratio: float = setting(0.8, "Feature ratio", "Share of the steps, from the first, that take their shapes "
                                "from the source.", "Ditail feature ratio", low=0.0, high=1.0)
    attn_ratio: float = setting(0.5, "Attention ratio", "Share of the steps, from the first, that take their layout "
                                "from the source.", "Ditail attention ratio", low=0.0, high=1.0)
    inject: str = setting("both", "Inject into", "cond: inject into the rows of the prompt only, for more structure "
                          "and less style; both: into those of the negative prompt, too.", "Ditail inject",
                          choices=("both", "cond"))
    guidance_until: float = setting(1.0, "Guidance until", "Share of the steps, from the first, that use the CFG "
                                    "scale; the others take a scale of 1, at half the cost.", "Ditail guidance until",
                                    low=0.0, high=1.0)
    source_latents: str = setting("inverted", "Latents of a generated source", "inverted: invert the image that the "
                                  "source checkpoint generates; kept: take the latents of its generation, which "
                                  "transfer little.", "Ditail source latents", choices=("inverted", "kept"))
    inversion_steps: float = setting(1.0, "Inversion steps", "Share of the sampler's steps at which the source is "
                                     "inverted (below 1: 5 to 25 steps); fewer cost less and give more style.",
                                     "Ditail inversion steps", low=0.1, high=1.0)
    contours: float = setting(0.0, "Contours", "Moves shapes toward the content's while the image forms, at no cost; "
                              "more keeps more structure.", "Ditail contours", low=0.0, high=1.0)
    tone: float = setting(0.0, "Tone", "Moves the colours that the start gives to the foreground toward the target's "
                          "own.", "Ditail tone", low=0.0, high=1.0)
    colours: str = setting("style", "Colours", "Whose colours the image has in the end: the style's, or the content "
                           "image's at the style's lightness.", "Ditail colours", choices=("style", "content"))
    start: str = setting("source", "Start", "Start sampling from the source's last latent or from the seed's noise.",
                         "Ditail start", choices=("source", "noise"))
    layers: str = setting("", "Layers", "Blocks to inject, and when: f4 a4-8 a9-11@0-0.3 (f: feature, a: attention, "
                          "@: range of the steps, from 0 to 1); empty: the default.", "Ditail layers",
                          parse=parse_layers)
    hires: bool = setting(True, "In the hires pass", "Take the content in the hires fix's second pass, too, at its "
                          "own size.", "Ditail hires")
    show_source: bool = setting(False, "Show the source", "Add the image that the content came from to the results.")
    sources: tuple[dict, ...] = setting((), "Further sources", "Mixed over the first, each with the keys of a source, "
                                        "weight, mask and steps.")
    collage: tuple[dict, ...] = setting((), "Collage", "Images laid out into one content image, each with a box or "
                                        "a mask.")
    mask: str | None = setting(None, "Mask", 'Only the white parts take the content; empty (null or "" in the API): '
                               "everywhere.")

    def __post_init__(self):
        for key, checked in BY_KEY.items():
            # The dataclass is frozen, and the check may convert the value (an int to a float).
            object.__setattr__(self, key, checked.check(getattr(self, key)))

    @classmethod
    def from_dict(cls, values: Mapping, presets: Mapping[str, Mapping] = PRESETS) -> "DitailSettings":
        """Settings from a mapping of the API or a file, over those of its preset. DitailError names an unknown key.

        presets: settings by key, by the preset's name.
        """
        if not isinstance(values, Mapping):
            raise DitailError("args", f"must be one object of settings, got {type(values).__name__}")
        for key in values:
            if key not in BY_KEY:
                raise DitailError(named(key), f"is not a setting of Ditail (known: {', '.join(sorted(BY_KEY))})")
        return cls(**{**preset_of(values.get("preset", ""), presets), **values})


BY_KEY = table_of(DitailSettings)
FIELDS = tuple(BY_KEY.values())

# (name, key, lowest, highest): outside this range burnt colours were more common on the demo checkpoints, by two
# measures (tables in docs/reliability-numbers.md, made by `lab.safe_region`). Alpha and beta have no range, as with
# neither measure burnt colours were more common than in plain generation.
SAFE_REGION = (("CFG scale", "cfg_scale", 0.0, 10.0),)


def warnings_of(**values: float | None) -> list[str]:
    """A sentence for each of the `values` (by key, None = unknown) that is outside its range in SAFE_REGION."""
    sentences = []
    for name, key, lowest, highest in SAFE_REGION:
        value = values.get(key)
        if value is not None and not lowest <= value <= highest:
            side, limit = ("below", lowest) if value < lowest else ("above", highest)
            sentences.append(f"{name} {value:g} is {side} {limit:g}, where burnt colours are more common.")
    return sentences
