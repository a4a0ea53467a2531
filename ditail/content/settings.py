"""The settings of a run: one table of fields, one frozen object built from it and validated when it is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from ..errors import DitailError, named, shown
from ..method.layers import parse_layers

# A path has at most 4096 characters on the systems that the WebUI runs on.
MAX_NAME = 4096


@dataclass(frozen=True)
class Field:
    """One setting. `low` and `high` bound a number; `choices` lists what a text may be (None: any text).

    `infotext` is the key in a picture's infotext (None: not written there). `parse` raises DitailError for a text that
    makes no sense. `max_length` bounds a text's characters (None: any).
    """

    key: str
    label: str
    default: bool | float | str | tuple | None
    help: str
    infotext: str | None = None
    low: float | None = None
    high: float | None = None
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


FIELDS = (
    Field("enabled", "Enable Ditail", False, "Take the content from a source and the style from this checkpoint."),
    Field("source", "Source", "image", "Where the content comes from: a picture that is inverted, or one that the "
          "source checkpoint generates.", "Ditail source", choices=("image", "generate")),
    Field("image", "Content image", None, "The picture whose content is kept; in img2img the init image if "
          'empty (null or "" in the API).'),
    Field("resize_mode", "Resize mode", "crop", "How a content image of other proportions is made to fit: cut off, "
          "padded with its edge, or stretched.", "Ditail resize mode", choices=("crop", "fill", "stretch")),
    Field("source_checkpoint", "Source checkpoint", "", "The model that inverts the content image, or generates it; "
          "the target itself if none is chosen.", "Ditail source checkpoint", max_length=MAX_NAME),
    Field("source_vae", "Source VAE", "", "The VAE that encodes the content image; Automatic is the WebUI's choice.",
          "Ditail source VAE", max_length=MAX_NAME),
    Field("source_prompt", "Source prompt", "", "What the content image shows, LoRA tags allowed; empty: the main "
          "prompt.", "Ditail source prompt"),
    Field("source_negative_prompt", "Source negative prompt", "", "Empty: the main negative prompt.",
          "Ditail source negative prompt"),
    Field("alpha", "Alpha", 3.0, "Weight of the prompt in the inversion: more keeps more structure, then colours turn "
          "unnatural.", "Ditail alpha", 0.0, 10.0),
    Field("beta", "Beta", 0.5, "Weight of the negative prompt in the inversion.", "Ditail beta", 0.0, 10.0),
    Field("conv_ratio", "Feature ratio", 0.8, "Share of the steps, from the first, that take the source's ResBlock "
          "feature.", "Ditail feature ratio", 0.0, 1.0),
    Field("attn_ratio", "Attention ratio", 0.5, "Share of the steps, from the first, that take the source's "
          "self-attention queries and keys.", "Ditail attention ratio", 0.0, 1.0),
    Field("start", "Start", "source", "Start sampling from the source's last latent or from the seed's noise.",
          "Ditail start", choices=("source", "noise")),
    Field("layers", "Layers", "", "Which blocks, and when: f4 a4-8 a9-11@0-0.3 (f: feature, a: attention, @: from "
          "which share of the steps to which); empty: the usual ones.", "Ditail layers", parse=parse_layers),
    Field("hires", "In the hires pass", True, "Take the content in the hires fix's second pass, too, at its own size.",
          "Ditail hires"),
    Field("show_source", "Show the source", False, "Add the picture that the content came from to the results."),
    Field("sources", "Further sources", (), "Mixed over the first, each with the keys of a source, weight, mask "
          "and steps."),
    Field("collage", "Collage", (), "Pictures laid out into one content image, each with a box or a mask."),
    Field("mask", "Mask", None, 'Only the white parts take the content; empty (null or "" in the API): everywhere.'),
)
BY_KEY = {f.key: f for f in FIELDS}


@dataclass(frozen=True)
class DitailSettings:
    """A validated set of settings; see `FIELDS` for what each means. Raises DitailError naming the key."""

    enabled: bool = BY_KEY["enabled"].default
    source: str = BY_KEY["source"].default
    image: str | None = BY_KEY["image"].default
    resize_mode: str = BY_KEY["resize_mode"].default
    source_checkpoint: str = BY_KEY["source_checkpoint"].default
    source_vae: str = BY_KEY["source_vae"].default
    source_prompt: str = BY_KEY["source_prompt"].default
    source_negative_prompt: str = BY_KEY["source_negative_prompt"].default
    alpha: float = BY_KEY["alpha"].default
    beta: float = BY_KEY["beta"].default
    conv_ratio: float = BY_KEY["conv_ratio"].default
    attn_ratio: float = BY_KEY["attn_ratio"].default
    start: str = BY_KEY["start"].default
    layers: str = BY_KEY["layers"].default
    hires: bool = BY_KEY["hires"].default
    show_source: bool = BY_KEY["show_source"].default
    sources: tuple[dict, ...] = BY_KEY["sources"].default
    collage: tuple[dict, ...] = BY_KEY["collage"].default
    mask: str | None = BY_KEY["mask"].default

    def __post_init__(self):
        for field in FIELDS:
            # Frozen: the checked value (an int given for a float, say) replaces what came in.
            object.__setattr__(self, field.key, field.check(getattr(self, field.key)))

    @classmethod
    def from_dict(cls, values: Mapping) -> "DitailSettings":
        """Settings from an API's or a file's mapping; an unknown key raises DitailError naming it."""
        if not isinstance(values, Mapping):
            raise DitailError("args", f"must be one object of settings, got {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                key = named(key)
                raise DitailError(key, f"is not a setting of Ditail (known: {', '.join(sorted(known))})")
        return cls(**values)


# (name, key, lowest, highest) of the numbers outside of which burnt colours were more common on the demo checkpoints,
# by two measures: docs/reliability.md has the tables, `lab.safe_region` makes them. By neither do alpha and beta burn
# more than plain generation does, so they have no bound here.
SAFE_REGION = (("CFG scale", "cfg_scale", 0.0, 10.0),)


def warnings_of(**values: float | None) -> list[str]:
    """A sentence for each of the `values`, by the keys of SAFE_REGION, that is outside it; None: not known."""
    sentences = []
    for name, key, lowest, highest in SAFE_REGION:
        value = values.get(key)
        if value is not None and not lowest <= value <= highest:
            side, limit = ("below", lowest) if value < lowest else ("above", highest)
            sentences.append(f"{name} {value:g} is {side} {limit:g}, where burnt colours are more common.")
    return sentences
