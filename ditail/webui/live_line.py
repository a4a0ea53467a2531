"""The live line: what Generate will do, its cost relative to a plain image, and warnings."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

from modules import extra_networks, prompt_parser, sd_models, shared

from ..content.balance import KEYS
from ..content.settings import DitailSettings, warnings_of
from ..errors import DitailError
from ..job.cost import USUAL_FAMILY, cost_of
from ..job.host import Checkpoint
from . import loaded
from .checkpoints import check_family, check_family_of_files, checkpoint_of, family_of_target, find_checkpoint
from .controls import SAME_CHECKPOINT, SAME_SOURCE, missing_sentence
from .failures import in_words

# The controls that the line depends on. Those of the WebUI are named by the ends of their ids.
DITAIL_CONTROLS = ("enabled", "source", "source_checkpoint", "source_prompt", "missing", "second_on", "second_source",
                   "second_source_checkpoint", *KEYS)
WEBUI_CONTROLS = ("steps", "cfg_scale", "batch_size", "batch_count", "prompt")
# Words from the page: image (there is a content image), broken (it can't be shown), second_image (the second source's),
# init (img2img has an image), batch (img2img's Batch), reference (ControlNet).
FACTS = "facts"
# The paper's largest alpha, and the largest beta with which the demo's content images were reconstructed from their
# inversion as well as with 0.5 (explained variance 0.86; at alpha 10 or beta 10 from 0.54 to 0.87).
LARGE_ALPHA, LARGE_BETA = 8.0, 3.0
ALL = tuple(dict.fromkeys((*DITAIL_CONTROLS, *WEBUI_CONTROLS)))


def html_of(values: Mapping, *, is_img2img: bool) -> str:
    """The line as HTML; empty while Ditail is off. values: of ALL and FACTS; those of WEBUI_CONTROLS may be absent."""
    if not values.get("enabled"):
        return ""
    plan, warnings = html.escape(_plan(values)), list(_warnings(values, is_img2img))
    lines = "".join(f'<li class="ditail-warning">{html.escape(sentence)}</li>' for sentence in warnings)
    return f'<p>{plan}</p>' + (f"<ul>{lines}</ul>" if lines else "")


def warning(sentence: str) -> str:
    """One warning as HTML, as the line shows it."""
    return f'<ul><li class="ditail-warning">{html.escape(sentence)}</li></ul>'


def _plan(values: Mapping) -> str:
    target, source = _target(), _source(values)
    steps, count = _whole(values, "steps", 20), _whole(values, "batch_count", 1)
    batch = _whole(values, "batch_size", 1)
    names = {"target": target.name if target else "this checkpoint", "steps": f"{steps} steps"}
    names["source"] = source.name if source else _source_name(values) or names["target"]
    settings, prompts = _settings(values), _parts_of_sum(_text(values, "prompt"))
    if prompts:  # see `guidance`: no row is left out
        settings = replace(settings, guidance_until=1.0)
    if values["source"] == "generate":
        begin = "Generates the content with {source} and inverts it"
    else:
        begin = "Inverts the content image with {source}"
    cost = cost_of(settings, steps, batch, count, _family(), max(1, prompts))
    many = f"{batch * count} plain images" if batch * count > 1 else "a plain image"
    text = (f"{begin}, then samples with {{target}} in {{steps}}. Costs {cost.cold:.2f} times {many}, {cost.warm:.2f} "
            "while the source is cached")
    if values["source"] == "image" and _text(values, "prompt") and not _text(values, "source_prompt"):
        text += ": until the prompt changes, as there is no source prompt"
    uncounted = ["loading the checkpoints"] if source and target and source.path != target.path else []
    uncounted += ["the second source"] if values.get("second_on") and not _is_same_second(values) else []
    return (text + "." + (f" Not counted: {', '.join(uncounted)}." if uncounted else "")).format(**names)


def _parts_of_sum(prompt: str) -> int:
    """The number of prompts in a sum of prompts (`AND`), also if it is a single one with a weight; 0 for others."""
    parts, = prompt_parser.get_multicond_prompt_list([extra_networks.parse_prompt(prompt)[0]])[0]
    return len(parts) if len(parts) > 1 or parts[0][1] != 1 else 0


def _settings(values: Mapping) -> DitailSettings:
    known = {field.name for field in fields(DitailSettings)}
    settings = {key: values[key] for key in (*KEYS, "source") if key in known and values.get(key) is not None}
    try:
        return DitailSettings.from_dict(settings)
    except DitailError:
        return DitailSettings()  # a number that is being typed


def _warnings(values: Mapping, is_img2img: bool) -> Iterator[str]:
    facts = _facts(values)
    for line in str(values.get("missing") or "").splitlines():
        yield _capital(missing_sentence(line.partition("\t")[2])) + "."
    yield from _image_warnings(values, facts, is_img2img)
    yield from _checkpoint_warnings(values, facts)
    if not _text(values, "prompt"):
        yield "There is no prompt: say what the content image shows, or structure is lost."
    if values.get("second_on") and _is_same_second(values):
        yield SAME_SOURCE
    if "reference" in facts and values.get("attn_ratio"):
        yield ("A ControlNet unit with a reference preprocessor rewrites the same attention: switch it off, or set "
               "Attention ratio to 0.")
    settings = _settings(values)
    if values["source"] == "image" and (settings.alpha > LARGE_ALPHA or settings.beta > LARGE_BETA):
        yield "Alpha or Beta is so large that less of the content image comes back: Preview shows how much."
    yield from warnings_of(alpha=settings.alpha, beta=settings.beta, cfg_scale=values.get("cfg_scale"))


def _image_warnings(values: Mapping, facts: set, is_img2img: bool) -> Iterator[str]:
    if values["source"] == "image" and "broken" in facts:
        yield "The content image can't be read; choose another file."
    elif values["source"] == "image" and not is_img2img and "image" not in facts and not values.get("missing"):
        yield "There is no content image yet."
    if is_img2img and "batch" not in facts and "init" not in facts:
        yield "There is no image in img2img's own slot yet."


def _checkpoint_warnings(values: Mapping, facts: set) -> Iterator[str]:
    try:
        source = find_checkpoint(_source_name(values))
    except DitailError as error:
        yield in_words(error) + "."
        return
    target = _target()
    if source is None or target is None or source.path == target.path:
        return
    try:
        if loaded.selected() is None:  # Forge loads it when it is first used
            check_family_of_files(source, target)
        else:
            check_family(source)
    except DitailError as error:
        yield in_words(error) + "."
    if "batch" in facts and len(loaded.in_memory()) < 2:
        yield (f"{source.name} and {target.name} are both loaded for every file of the batch; the script \"Ditail "
               'folder" loads each once.')


def _is_same_second(values: Mapping) -> bool:
    return "second_image" not in _facts(values) and all(
        values.get(f"second_{key}") == values.get(key) for key in ("source", "source_checkpoint"))


def _facts(values: Mapping) -> set[str]:
    return set(str(values.get(FACTS) or "").split())


def _source(values: Mapping) -> Checkpoint | None:
    try:
        return find_checkpoint(_source_name(values))
    except DitailError:
        return None  # a warning says so


def _source_name(values: Mapping) -> str:
    name = values.get("source_checkpoint") or ""
    return "" if name == SAME_CHECKPOINT else name


def _target() -> Checkpoint | None:
    info = sd_models.get_closet_checkpoint_match(shared.opts.sd_model_checkpoint or "")
    return checkpoint_of(info) if info else None


def _family() -> str:
    try:
        return family_of_target() if loaded.selected() is not None else USUAL_FAMILY
    except DitailError:
        return USUAL_FAMILY  # a warning says so


def _text(values: Mapping, name: str) -> str:
    return (values.get(name) or "").strip()


def _whole(values: Mapping, name: str, default: int) -> int:
    value = values.get(name)
    return int(value) if isinstance(value, int | float) and value >= 1 else default


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
