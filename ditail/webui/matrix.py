"""The Ditail matrix script: content of each row's model, style of each column's, the diagonal plain."""

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
# Several names may mean the same checkpoint: its title, name and hashes.
MOST_TEXTS = 10 * MOST
MAX_MARGIN = 500
# The keys of the tab's controls, in order.
CONTROLS = ("checkpoints", "further", "one_source", "margin")
# The WebUI's syntax of extra networks in a prompt.
TAG = re.compile(r"<\w+:[^<>]+>")


def parse_models(texts: Sequence[str]) -> list[MatrixModel]:
    """Models from texts `checkpoint` or `checkpoint + <lora:name:weight>`. Raises DitailError naming "checkpoints"."""
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
    """Run a matrix of job `p`. Returns a Processed with the titled grid and then the images row by row.

    values: Ditail's settings, as the API takes them or with images of the tab. If interrupted, the rest is empty.
    """
    with restored_models(is_sound=_is_refusal) as before:
        before.check_files()
        values = _with_vae(values)
        request = Request.from_values({**values, "enabled": True}, WebuiLibrary())
        source = None
        if one_source:
            source = MatrixModel(request.checkpoint or checkpoint_of(shared.sd_model.sd_checkpoint_info))
        models = parse_models(names)
        processing.fix_seed(p)
        cells = cells_of(models, source)
        shared.state.job_count = len(cells) * p.n_iter
        shared.total_tqdm.updateTotal(len(cells) * p.n_iter * p.steps)
        has_tags = any(model.tags for model in (*models, source or models[0]))
        results = {}
        for done, cell in enumerate(in_loading_order(cells)):
            if shared.state.interrupted or shared.state.stopping_generation:
                break
            shared.state.job = f"{done + 1} out of {len(cells)}"
            log.info("matrix %d of %d: content of %s, style of %s", done + 1, len(cells), cell.source.name,
                     cell.target.name)
            job = _job(p, cell, values, has_tags)
            setattr(job, PLACE, f"{done + 1} of {len(cells)}")
            processed = processing.process_images(job)
            if processed.images:
                results[cell] = processed
            else:
                p.comments.update(job.comments)  # the user must learn why there is no image
        return _joined(p, cells, results, margin)


def _with_vae(values: dict) -> dict:
    """Settings with a VAE for the sources: that of the WebUI's settings, unless one is chosen."""
    return values if values.get("source_vae") else {**values, "source_vae": chosen_vae()}


def _job(p, cell: Cell, values: dict, has_tags: bool):
    """A copy of `p` for one cell. has_tags: whether any model of the matrix has tags of extra networks."""
    job = copy.copy(p)
    job.styles = list(p.styles)
    # The cell's checkpoint must not stay selected, whatever the request says for its own override settings.
    job.override_settings_restore_afterwards = True
    job.override_settings = {**p.override_settings, "sd_model_checkpoint": cell.target.checkpoint.handle.name}
    job.extra_generation_params, job.comments = dict(p.extra_generation_params), {}
    job.do_not_save_grid = True
    values = {**values, "enabled": True, "source_checkpoint": cell.source.checkpoint.title}
    if has_tags:
        prompt = values.get("source_prompt") or shared.prompt_styles.apply_styles_to_prompt(p.prompt, p.styles)
        values["source_prompt"] = f"{prompt} {cell.source.tags}".strip()
        job.prompt = f"{p.prompt} {cell.target.tags}".strip()
        if getattr(p, "hr_prompt", ""):  # without one, the hires pass has the prompt
            job.hr_prompt = f"{p.hr_prompt} {cell.target.tags}".strip()
    # Without a content image, the plain image of the diagonal is the content of its row.
    setattr(job, PLAIN, cell.is_plain and values.get("source") == "generate")
    arguments, ours = list(p.script_args), arguments_slice(p)
    arguments[ours] = [values, *[None] * (ours.stop - ours.start - 1)]
    job.script_args = tuple(arguments)
    return job


def arguments_slice(p) -> slice:
    """The slice of the job's script arguments that is the always-on script's."""
    script = next(s for s in p.scripts.alwayson_scripts if s.title() == TITLE)
    return slice(script.args_from, script.args_to)


def _is_refusal(error: BaseException) -> bool:
    """Whether an exception of a cell is a refusal of the request, which leaves the loaded model intact."""
    return isinstance(error, DitailError | Ditail | HTTPException)


def _joined(p, cells: Sequence[Cell], results: dict, margin: int):
    """One Processed from those of the cells; a cell that was not reached is black in the grid."""
    if not results:
        return processing.Processed(p, [], p.seed)
    ordered = [results[cell] for cell in cells if cell in results]
    first = ordered[0]
    size = first.images[0].size
    tiles = [results[cell].images[0] if cell in results else Image.new("RGB", size) for cell in cells]
    columns = 1 + max(cell.column for cell in cells)
    grid = images.image_grid(tiles, rows=len(cells) // columns)
    grid = images.draw_grid_annotations(
        grid, *size, [[images.GridAnnotation(c.target.name), images.GridAnnotation("style")] for c in cells[:columns]],
        [[images.GridAnnotation(c.source.name), images.GridAnnotation("content")] for c in cells[::columns]], margin,
    )
    joined = copy.copy(first)
    names = "; ".join(cell.target.name for cell in cells[:columns])
    text = f"{first.infotexts[0]}, Script: {MATRIX_TITLE}, Matrix models: {infotext_utils.quote(names)}"
    joined.images = [grid, *(image for processed in ordered for image in processed.images)]
    joined.infotexts = [text, *(text for processed in ordered for text in processed.infotexts)]
    joined.all_prompts = [prompt for processed in ordered for prompt in processed.all_prompts]
    joined.all_seeds = [seed for processed in ordered for seed in processed.all_seeds]
    joined.index_of_first_image = 1
    if shared.opts.grid_save and not p.do_not_save_grid:
        images.save_image(grid, p.outpath_grids, "ditail_matrix", info=text, extension=shared.opts.grid_format,
                          prompt=first.prompt, seed=first.seed, grid=True, p=p)
    return joined


def run_args(p, args: tuple):
    """`run` with the script's arguments: one dict (API), or the values of the tab's controls."""
    with errors_for_the_user(p):
        if args and isinstance(args[0], dict):
            request = _from_api(args[0])
            values, source = request.values, request.values.get("source")
        else:
            request = _from_controls(p, args)
            values, source = request.values, None
        if not source and not values.get("image") and not values.get("collage") and not hasattr(p, "init_images"):
            values["source"] = "generate"  # without a content image each model generates its own content
        return run(p, values, request.names, one_source=request.one_source, margin=request.margin)


@dataclass(frozen=True)
class MatrixRequest:
    """The user's request for a matrix. values: Ditail's settings by key. names: the models. margin: in pixels."""

    values: dict
    names: object
    one_source: bool = False
    margin: int = 0


def _from_api(argument: dict) -> MatrixRequest:
    values = dict(argument)
    return MatrixRequest(values, values.pop("checkpoints", []), _check_one_source(values.pop("one_source", False)))


def _from_controls(p, args: tuple) -> MatrixRequest:
    """The request of the tab's controls (`ui.build_matrix`); the API may also send their values by position."""
    check_count(p, args, CONTROLS)
    names, further, one_source, margin = args
    if not isinstance(names, list | tuple | None):
        raise DitailError("checkpoints", f"must be a list of names, got {shown(names)}")
    if not isinstance(further, str | None):
        raise DitailError("further", f"must be a text of one model a line, got {shown(further)}")
    names = [*(names or ()), *filter(None, (line.strip() for line in (further or "").splitlines()))]
    arguments = p.script_args[arguments_slice(p)]
    Extras.from_args(arguments).check()
    return MatrixRequest(settings_from(arguments), names,
                         _check_one_source(False if one_source is None else one_source), _check_margin(margin))


def check_count(p, args: tuple, names: Sequence[str]) -> None:
    """Raise DitailError unless the request has a value for each of a script's controls. names: of the controls.

    The API inserts the values in place of the script's own, whatever their number; the WebUI then passes as many as the
    script has controls, so `args` may include the next script's arguments, or lack some.
    """
    count = len(names) + len(p.script_args) - len(p.scripts.inputs) if getattr(p, "is_api", False) else len(args)
    if count != len(names):
        raise DitailError("script_args", f"must be one object, or {len(names)} values ({', '.join(names)}), got "
                          f"{count}")


def _check_one_source(value) -> bool:
    if not isinstance(value, bool):
        raise DitailError("one_source", f"must be true or false, got {shown(value)}")
    return value


def _check_margin(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_MARGIN:
        raise DitailError("margin", f"must be a number of pixels from 0 to {MAX_MARGIN}, got {shown(value)}")
    return int(value)
