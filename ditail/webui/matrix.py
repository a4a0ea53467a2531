"""The m x m matrix: content of each row's model, style of each column's (paper figure 1), the diagonal plain."""

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import HTTPException
from modules import images, infotext_utils, processing, shared
from PIL import Image

from ..errors import DitailError, shown
from ..job.matrix import Cell, MatrixModel, cells_of, in_loading_order
from ..job.request import Request
from .checkpoints import WebuiLibrary, check_family, checkpoint_of, find_checkpoint
from .controls import Extras, settings_from
from .failures import Ditail, errors_for_the_user
from .host import chosen_vae, restored_models
from .infotext import TITLE
from .progress import PLACE
from .run import PLAIN

log = logging.getLogger("ditail")

MATRIX_TITLE = "Ditail matrix"
MOST = 16
# One checkpoint has a title, a name, hashes: some names may mean the same.
MOST_TEXTS = 10 * MOST
MAX_MARGIN = 500
# The keys of the tab's controls in their order.
CONTROLS = ("checkpoints", "further", "one_source", "margin")
# What the WebUI takes for an extra network in a prompt.
TAG = re.compile(r"<\w+:[^<>]+>")


def parse_models(texts: Sequence[str]) -> list[MatrixModel]:
    """Models from `checkpoint` or `checkpoint + <lora:name:weight>` texts. Raises DitailError naming "checkpoints"."""
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
        raise DitailError("checkpoints", f"must be a list of names, got {shown(texts)}")
    texts = dict.fromkeys(texts)
    if len(texts) > MOST_TEXTS:
        raise DitailError("checkpoints", f"takes 2 to {MOST} different ones, got {len(texts)} names")
    try:
        models = dict.fromkeys(map(_parse_model, texts))
    except DitailError as error:
        raise DitailError("checkpoints", error.sentence) from error
    if not 2 <= len(models) <= MOST:
        raise DitailError("checkpoints", f"takes 2 to {MOST} different ones, got {len(models)}")
    return list(models)


def _parse_model(text: str) -> MatrixModel:
    name, plus, tags = text.partition("+ <") if "+ <" in text else text.partition("+<")
    tags = f"<{tags.strip()}" if plus else ""
    if any(bracket in TAG.sub("", tags) for bracket in "<>"):
        raise DitailError("checkpoints", f"a tag must look like <lora:name:0.7>, got {shown(tags)}")
    checkpoint = find_checkpoint(name.strip())
    if checkpoint is None:
        raise DitailError("checkpoints", "one of them is empty")
    check_family(checkpoint)
    return MatrixModel(checkpoint, tags)


def run(p, values: dict, names: Sequence[str], *, one_source: bool = False, margin: int = 0):
    """The Processed of a matrix of job `p`: the titled grid, then the images row by row.

    values: Ditail's settings, as the API takes them or with images of the tab. Interrupting gives what is done.
    """
    with restored_models(is_sound=_is_refusal) as before:
        before.check_files()
        values = _complete(values)
        request = Request.from_values({**values, "enabled": True}, WebuiLibrary())
        source = None
        if one_source:
            source = MatrixModel(request.checkpoint or checkpoint_of(shared.sd_model.sd_checkpoint_info))
        chosen = parse_models(names)
        processing.fix_seed(p)
        cells = cells_of(chosen, source)
        shared.state.job_count = len(cells) * p.n_iter
        shared.total_tqdm.updateTotal(len(cells) * p.n_iter * p.steps)
        tagged = any(model.tags for model in (*chosen, source or chosen[0]))
        results = {}
        for done, cell in enumerate(in_loading_order(cells)):
            if shared.state.interrupted or shared.state.stopping_generation:
                break
            shared.state.job = f"{done + 1} out of {len(cells)}"
            log.info("matrix %d of %d: content of %s, style of %s", done + 1, len(cells), cell.source.name,
                     cell.target.name)
            job = _job(p, cell, values, tagged)
            setattr(job, PLACE, f"{done + 1} of {len(cells)}")
            processed = processing.process_images(job)
            if processed.images:
                results[cell] = processed
            else:
                p.comments.update(job.comments)  # why there is none
        return _joined(p, cells, results, margin)


def _complete(values: dict) -> dict:
    """The VAE of the WebUI's settings counts for the sources, too, if no other is chosen."""
    return values if values.get("source_vae") else {**values, "source_vae": chosen_vae()}


def _job(p, cell: Cell, values: dict, tagged: bool):
    """A copy of the job for one cell."""
    job = copy.copy(p)
    job.styles = list(p.styles)
    # Whatever the request says of its own settings: that of a cell's checkpoint is the matrix's.
    job.override_settings_restore_afterwards = True
    job.override_settings = {**p.override_settings, "sd_model_checkpoint": cell.target.checkpoint.handle.name}
    job.extra_generation_params, job.comments = dict(p.extra_generation_params), {}
    job.do_not_save_grid = True
    values = {**values, "enabled": True, "source_checkpoint": cell.source.checkpoint.title}
    if tagged:
        prompt = values.get("source_prompt") or shared.prompt_styles.apply_styles_to_prompt(p.prompt, p.styles)
        values["source_prompt"] = f"{prompt} {cell.source.tags}".strip()
        job.prompt = f"{p.prompt} {cell.target.tags}".strip()
    # Without a content image a model's own image is the content of its row.
    setattr(job, PLAIN, cell.is_plain and values.get("source") == "generate")
    arguments, place = list(p.script_args), own_arguments(p)
    arguments[place] = [values, *[None] * (place.stop - place.start - 1)]
    job.script_args = tuple(arguments)
    return job


def own_arguments(p) -> slice:
    """Where the always-on script's arguments are among the job's."""
    always = next(s for s in p.scripts.alwayson_scripts if s.title() == TITLE)
    return slice(always.args_from, always.args_to)


def _is_refusal(error: BaseException) -> bool:
    """Whether what a cell raised says nothing of the model that is loaded."""
    return isinstance(error, DitailError | Ditail | HTTPException)


def _joined(p, cells: Sequence[Cell], results: dict, margin: int):
    """One Processed of those of the cells; a cell that was not reached is empty."""
    if not results:
        return processing.Processed(p, [], p.seed)
    ordered = [results[cell] for cell in cells if cell in results]
    first = ordered[0]
    size = first.images[0].size
    shown = [results[cell].images[0] if cell in results else Image.new("RGB", size) for cell in cells]
    columns = 1 + max(cell.column for cell in cells)
    grid = images.image_grid(shown, rows=len(cells) // columns)
    grid = images.draw_grid_annotations(
        grid, *size, [[images.GridAnnotation(c.target.name), images.GridAnnotation("style")] for c in cells[:columns]],
        [[images.GridAnnotation(c.source.name), images.GridAnnotation("content")] for c in cells[::columns]], margin,
    )
    joined = copy.copy(first)
    names = "; ".join(cell.target.name for cell in cells[:columns])
    text = f"{first.infotexts[0]}, Script: {MATRIX_TITLE}, Matrix models: {infotext_utils.quote(names)}"
    joined.images = [grid, *(image for one in ordered for image in one.images)]
    joined.infotexts = [text, *(text for one in ordered for text in one.infotexts)]
    joined.all_prompts = [prompt for one in ordered for prompt in one.all_prompts]
    joined.all_seeds = [seed for one in ordered for seed in one.all_seeds]
    joined.index_of_first_image = 1
    if shared.opts.grid_save and not p.do_not_save_grid:
        images.save_image(grid, p.outpath_grids, "ditail_matrix", info=text, extension=shared.opts.grid_format,
                          prompt=first.prompt, seed=first.seed, grid=True, p=p)
    return joined


def run_args(p, args: tuple):
    """`run` with the script's arguments: one dict (API), or what the tab's controls hold."""
    with errors_for_the_user(p):
        if args and isinstance(args[0], dict):
            asked = _from_api(args[0])
            values, chosen = asked.values, asked.values.get("source")
        else:
            asked = _from_controls(p, args)
            values, chosen = asked.values, None
        if not chosen and not values.get("image") and not values.get("collage") and not hasattr(p, "init_images"):
            values["source"] = "generate"  # without a content image each model makes its own
        return run(p, values, asked.names, one_source=asked.one_source, margin=asked.margin)


@dataclass(frozen=True)
class Asked:
    """What a matrix is asked for: Ditail's settings by key, the models' names, one row or all, the grid's margin."""

    values: dict
    names: object
    one_source: bool = False
    margin: int = 0


def _from_api(given: dict) -> Asked:
    values = dict(given)
    return Asked(values, values.pop("checkpoints", []), _check_one_source(values.pop("one_source", False)))


def _from_controls(p, args: tuple) -> Asked:
    """The values of the tab's controls (`ui.build_matrix`), which the API may send by position, too."""
    count = _count_given(p, args)
    if count != len(CONTROLS):
        raise DitailError("script_args", f"must be one object, or {len(CONTROLS)} values ({', '.join(CONTROLS)}), got "
                          f"{count}")
    names, further, one_source, margin = args
    if not isinstance(names, list | tuple | None):
        raise DitailError("checkpoints", f"must be a list of names, got {shown(names)}")
    if not isinstance(further, str | None):
        raise DitailError("further", f"must be a text of one model a line, got {shown(further)}")
    names = [*(names or ()), *filter(None, (line.strip() for line in (further or "").splitlines()))]
    arguments = p.script_args[own_arguments(p)]
    Extras.from_args(arguments).check()
    return Asked(settings_from(arguments), names,
                 _check_one_source(False if one_source is None else one_source), _check_margin(margin))


def _count_given(p, args: tuple) -> int:
    """How many arguments the script was given.

    The API puts them in the place of the script's own, whatever their number; the WebUI then counts off as many as the
    script has controls, and so may hand over the next script's, or leave some out.
    """
    return len(CONTROLS) + len(p.script_args) - len(p.scripts.inputs) if getattr(p, "is_api", False) else len(args)


def _check_one_source(value) -> bool:
    if not isinstance(value, bool):
        raise DitailError("one_source", f"must be true or false, got {shown(value)}")
    return value


def _check_margin(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_MARGIN:
        raise DitailError("margin", f"must be a number of pixels from 0 to {MAX_MARGIN}, got {shown(value)}")
    return int(value)
