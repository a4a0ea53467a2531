"""A folder of content images, or several uploaded ones: one job each, with models loaded once for many jobs."""

import copy
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import gradio as gr
from modules import images, processing, shared
from PIL import Image

from ..content.images import read_image, shrunk_to_cover
from ..errors import DitailError, shown
from ..job.request import Request
from . import caption
from .checkpoints import WebuiLibrary
from .controls import Extras, settings_from
from .failures import errors_for_the_user, in_words
from .matrix import arguments_slice, check_count
from .progress import PLACE
from .run import EXTRAS, SWEEP

log = logging.getLogger("ditail")

FOLDER_TITLE = "Ditail folder"
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
PROMPTS = NO_PROMPT, TEXT_FILE, INFOTEXT = "none", "a .txt file beside it", "its own infotext"
# The keys of the tab's controls, in order.
CONTROLS = ("files", "folder", "prompts")
# The source checkpoint is loaded once for the sources of so many images, if the cache is large enough for them.
AT_ONCE = 64
# Those images are in memory at once, so larger ones are shrunk to so many times the job's size. On a photo with noise,
# that changed the fitted image by 0.2 of 255 grey levels.
SHRINK_TO = 2
# Attribute of a job: how its images' files are named.
FILE_STEM = "_ditail_file_stem"
# What the WebUI, or `Run.show_sources`, adds to the name of an image that is not a result.
SUFFIX = re.compile(r"-(?:before-[a-z-]+|mask|mask-composite|ditail-source)$")


@dataclass(frozen=True)
class ContentFile:
    """A content image. name: the user's file name (an upload's path differs). text: the .txt file with its prompt."""

    path: Path
    name: str
    text: Path | None = None

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def prompt(self, kind: str, image: Image.Image) -> str:
        """The image's own prompt, "" for none."""
        if kind == TEXT_FILE and self.text is not None and self.text.is_file():
            return " ".join(self.text.read_text(encoding="utf-8", errors="replace").split())
        description = caption.from_infotext(image) if kind == INFOTEXT else None
        return description[0] if description else ""


def build(elem_id) -> list:
    """The script's controls, in the order in which `run_args` takes their values."""
    files = gr.Files(label="Content images (and their .txt files)", elem_id=elem_id("files"),
                     file_types=["image", ".txt"])
    folder = gr.Textbox(label="Or a folder on the server", lines=1, elem_id=elem_id("folder"),
                        visible=not shared.cmd_opts.hide_ui_dir_config)
    prompts = gr.Radio(label="Prompt of each image, added to the main prompt", choices=list(PROMPTS),
                       value=NO_PROMPT, elem_id=elem_id("prompts"))
    gr.HTML("<p>One job for each image with the settings of the Ditail section above, whether it is "
            "switched on or not. Results are named after the images. The source checkpoint is loaded once for up to "
            f"{AT_ONCE} images, as many as the cache of source latents takes.</p>")
    return [files, folder, prompts]


def content_files(uploaded: Sequence | None, folder: str) -> list[ContentFile]:
    """The uploaded images, or those of a folder in the order of their names. Raises DitailError if there are none."""
    if uploaded:
        # gradio 3 gives the path of its copy as the original name.
        paths = {Path(getattr(file, "orig_name", None) or file.name).name: Path(file.name) for file in uploaded}
        if not all(path.stat().st_size for path in paths.values()):  # so gradio 3 gives what it has not uploaded
            raise DitailError("folder", "an uploaded file has arrived empty; choose the files again")
    elif folder:
        if shared.cmd_opts.hide_ui_dir_config:
            raise DitailError("folder", "is switched off on this server; upload the images")
        paths = _files_of(Path(folder.strip()))
    else:
        raise DitailError("folder", "choose images or a folder")
    files = [ContentFile(path, name, paths.get(f"{Path(name).stem}.txt")) for name, path in paths.items()
             if Path(name).suffix.lower() in EXTENSIONS]
    if not files:
        raise DitailError("folder", "has no images")
    return files


def _files_of(root: Path) -> dict[str, Path]:
    """The files of a folder by name, in order. Raises DitailError if it can't be read."""
    try:
        if not root.is_dir():
            raise DitailError("folder", f"there is no folder {root}")
        return {path.name: path for path in sorted(root.iterdir()) if path.is_file()}
    except OSError as error:  # no permission, a name too long, ...
        raise DitailError("folder", f"can't be read ({error.strerror})") from error


@dataclass(frozen=True)
class FolderJob:
    """The job of one content image. values: Ditail's settings by key."""

    file: ContentFile
    image: Image.Image
    prompt: str
    values: dict


def run_args(p, args: tuple):
    """The Processed of all images. args: one dict (API), or the values of the tab's controls."""
    with errors_for_the_user(p):
        uploaded, folder, prompts = _arguments(p, args)
        values = {**settings_from(p.script_args[arguments_slice(p)]), "enabled": True, "source": "image"}
        return run(p, values, content_files(uploaded, folder), prompts)


def _arguments(p, args: tuple) -> tuple[list, str, str]:
    """The checked values of the controls. Raises DitailError naming the wrong one."""
    if args and isinstance(args[0], dict):
        unknown = [key for key in args[0] if key not in CONTROLS[1:]]
        if unknown:
            raise DitailError("script_args", f"{shown(unknown[0])} is not one of the keys {', '.join(CONTROLS[1:])}; "
                              'the settings of Ditail are in "alwayson_scripts"')
        uploaded, folder, prompts = None, args[0].get("folder"), args[0].get("prompts", NO_PROMPT)
    else:
        check_count(p, args, CONTROLS)
        uploaded, folder, prompts = args
    if uploaded and not (isinstance(uploaded, list) and all(hasattr(file, "name") for file in uploaded)):
        raise DitailError("files", f"must be null, as only the tab uploads files, got {shown(uploaded)}")
    if not isinstance(folder, str | None):
        raise DitailError("folder", f"must be a text, got {shown(folder)}")
    if prompts not in PROMPTS:
        raise DitailError("prompts", f'must be "{NO_PROMPT}", "{TEXT_FILE}" or "{INFOTEXT}", got {shown(prompts)}')
    return uploaded or [], folder or "", prompts


def run(p, values: dict, files: Sequence[ContentFile], prompts: str = NO_PROMPT):
    """Run one job for each file, and return one Processed of all; if interrupted, of those that are done."""
    processing.fix_seed(p)
    shared.state.job_count = len(files) * p.n_iter
    done, skipped, number = [], [], 0
    for first in range(0, len(files), AT_ONCE):
        jobs = list(_jobs(p, values, files[first : first + AT_ONCE], prompts, skipped))
        requests = [Request.from_values(job.values, WebuiLibrary()) for job in jobs]
        for i, job in enumerate(jobs):
            if shared.state.interrupted or shared.state.stopping_generation:
                return _joined(p, done, skipped)
            number += 1
            shared.state.job = f"{number} out of {len(files)}"
            one = _processing(p, job, requests[i + 1 :], f"{number} of {len(files)}")
            processed = processing.process_images(one)
            if processed.images:
                done.append(processed)
            else:
                p.comments.update(one.comments)  # the user must learn why there is no image
    return _joined(p, done, skipped)


def _jobs(p, values: dict, files: Sequence[ContentFile], prompts: str, skipped: list[str]) -> Iterator[FolderJob]:
    main = shared.prompt_styles.apply_styles_to_prompt(p.prompt, p.styles)
    size = largest_needed(p)
    for file in files:
        try:
            raw = images.read(str(file.path))
            image, text = read_image(raw), file.prompt(prompts, raw)
            image = shrunk_to_cover(image, *size) if size else image
        except (DitailError, OSError) as error:
            log.error("%s is skipped: %s", file.name, error)
            why = in_words(error) if isinstance(error, DitailError) else "it is not an image that can be read"
            skipped.append(f"{file.name} is skipped: {why}")
            continue
        # Sources of later images may be computed before their jobs begin, so the main prompt can't stand in for it.
        source_prompt = {"source_prompt": f"{main} {text}".strip()} if text and not values.get("source_prompt") else {}
        yield FolderJob(file, image, f"{p.prompt} {text}".strip(), {**values, **source_prompt, "image": image})


def largest_needed(p) -> tuple[int, int] | None:
    """(width, height) that a content image of job `p` has to cover; None if it is needed as it is."""
    if getattr(p, "image_mask", None) is not None and p.inpaint_full_res:
        return None  # the result has the init image's size
    scale = SHRINK_TO
    if getattr(p, "enable_hr", False):
        x, y = p.hr_resize_x, p.hr_resize_y
        scale *= max(1, x / p.width, y / p.height) if x or y else max(1, p.hr_scale)
    return int(scale * p.width), int(scale * p.height)


def _processing(p, job: FolderJob, later: Sequence[Request], place: str):
    """A copy of `p` for one image. later: the requests of the images after it. place: for the progress bar."""
    copied = copy.copy(p)
    copied.styles, copied.prompt = list(p.styles), job.prompt
    copied.extra_generation_params, copied.comments = dict(p.extra_generation_params), {}
    copied.do_not_save_grid = True
    if hasattr(p, "init_images"):
        copied.init_images = [job.image] * p.batch_size
    arguments, ours = list(p.script_args), arguments_slice(p)
    arguments[ours] = [job.values, *[None] * (ours.stop - ours.start - 1)]
    copied.script_args = tuple(arguments)
    for name, value in ((SWEEP, list(later)), (EXTRAS, Extras(image_name=job.file.name)), (PLACE, place),
                        (FILE_STEM, job.file.stem)):
        setattr(copied, name, value)
    return copied


def on_before_image_saved(params) -> None:
    """The WebUI's callback for every image: one of a folder's job is named after its content image.

    A number follows if there is such a file. Options for names could do it, too, but the WebUI leaves an option that
    its user has never set as a job has overridden it, and shows the older file of two with one name.
    """
    stem = getattr(params.p, "__dict__", {}).get(FILE_STEM)
    if stem is None:
        return
    path = Path(params.filename)
    stem += "".join(SUFFIX.findall(path.stem))
    files = (path.with_name(f"{stem}{f'-{n}' if n else ''}{path.suffix}") for n in count())
    params.filename = str(next(file for file in files if not file.exists()))


def _joined(p, done: Sequence, skipped: Sequence[str]):
    """One Processed with the images and infotexts of all jobs."""
    lines = [*skipped, *"".join(d.comments for d in done).splitlines()]
    comments = "".join(f"{line}\n" for line in dict.fromkeys(lines))
    if not done:
        empty = processing.Processed(p, [], p.seed)
        empty.comments += comments
        return empty
    joined = copy.copy(done[0])
    joined.comments = comments
    for name in ("images", "infotexts", "all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds"):
        setattr(joined, name, [value for processed in done for value in getattr(processed, name)])
    joined.index_of_first_image = 0
    return joined
