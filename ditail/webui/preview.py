"""The tab's Preview: a job as Generate would run it, up to the sampling, which shows what its sources are worth."""

import torch
from modules import images, processing, shared
from PIL import Image

from ..content.images import image_to_tensor
from ..errors import DitailError
from ..job.host import Interrupted
from ..job.preview import STEPS, Preview, preview
from .controls import Extras

PREVIEW = "preview"


def is_preview(extras: Extras) -> bool:
    return extras.task == PREVIEW


def make_preview_of(p) -> None:
    """Let job `p` end in one image that is not saved; called before the WebUI reads its numbers.

    Raises DitailError where a script of the Script dropdown would make jobs of its own.
    """
    if p.scripts is not None and getattr(p, "script_args", None) and p.script_args[0]:
        raise DitailError("script_args", "there is no preview of a script's jobs: set Script to None")
    p.batch_size = p.n_iter = 1
    p.do_not_save_samples = p.do_not_save_grid = True
    p.enable_hr = p.restore_faces = False


def sample(run) -> list[torch.Tensor]:
    """What the WebUI gets instead of latents: the last of the preview's images; the others are added by `show`."""
    job, p = run.job, run.p
    if not job.samplings:
        raise DitailError("enabled", "there is nothing to preview, as the denoising strength leaves no step")
    try:
        run.preview = preview(job, p.cfg_scale)
    except Interrupted:
        shared.state.interrupted = True
        p.comment("Ditail: the preview was interrupted")
        return processing.DecodedSamples([torch.zeros(3, p.height, p.width)])
    return processing.DecodedSamples([image_to_tensor(_images(run.preview)[-1])[0]])


def show(run, processed) -> None:
    """Put the preview's images, and a sheet of all with their titles, into a finished job's place."""
    found = run.preview
    if found is None:
        return
    shown, titles = _images(found), _titles(run, found)
    sheet = images.draw_grid_annotations(
        images.image_grid(shown, rows=1), *shown[0].size, [[images.GridAnnotation(title)] for title in titles],
        [[images.GridAnnotation()]], 8)
    processed.images = [sheet, *shown]
    processed.infotexts = ["Ditail preview: " + "; ".join(titles), *titles]
    processed.info, processed.index_of_first_image = processed.infotexts[0], 1


def _images(found: Preview) -> list[Image.Image]:
    return [image for image in (found.content, found.reconstruction, found.start) if image is not None]


def _titles(run, found: Preview) -> list[str]:
    source = run.job.sources[0].checkpoint.name
    titles = ["content image"]
    if found.reconstruction is not None:
        share = max(0, round(100 * found.similarity))
        titles.append(f"{share} % of it comes back from {source}")
    if found.start is not None:
        titles.append(f"{shared.sd_model.sd_checkpoint_info.name_for_extra}, {STEPS} steps from the start alone")
    return titles
