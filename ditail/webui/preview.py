"""The tab's Preview: a job that runs like Generate up to the sampling, and shows its sources instead."""

import torch
from modules import images, infotext_utils, processing, shared
from PIL import Image

from ..content.images import image_to_tensor
from ..errors import DitailError
from ..job.host import Interrupted
from ..job.preview import Preview, preview
from .controls import Extras, selected_script

PREVIEW = "preview"


def is_preview(extras: Extras) -> bool:
    return extras.task == PREVIEW


def make_preview_of(p) -> None:
    """Make job `p` a preview of one image that is not saved; called before the WebUI reads its batch size and count.

    Raises DitailError if a script of the Script dropdown is selected, as it would run jobs of its own.
    """
    if selected_script(p):
        raise DitailError("script_args", "there is no preview of a script's jobs: set Script to None")
    p.batch_size = p.n_iter = 1
    p.do_not_save_samples = p.do_not_save_grid = True
    p.enable_hr = p.restore_faces = False


def sample(run) -> list[torch.Tensor]:
    """The preview's last image, returned to the WebUI as decoded samples; `show` adds the others."""
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
    """Replace a finished job's images by a titled sheet of the preview's images, and these images."""
    if run.preview is None:
        return
    parts, titles = _images(run.preview), _titles(run, run.preview)
    sheet = images.draw_grid_annotations(
        images.image_grid(parts, rows=1), *parts[0].size, [[images.GridAnnotation(title)] for title in titles],
        [[images.GridAnnotation()]], 8)
    processed.images = [sheet, *parts]
    # The job's infotext, as the WebUI's Save reads the seed out of every image's.
    job = processed.infotexts[0]
    processed.infotexts = [f"{job}, Ditail preview: {infotext_utils.quote(title)}"
                           for title in ("; ".join(titles), *titles)]
    processed.info, processed.index_of_first_image = processed.infotexts[0], 1


def _images(result: Preview) -> list[Image.Image]:
    return [image for image in (result.content, result.reconstruction, result.start) if image is not None]


def _titles(run, result: Preview) -> list[str]:
    source = run.job.sources[0].checkpoint.name
    titles = ["content image"]
    if result.reconstruction is not None:
        share = max(0, round(100 * result.similarity))
        titles.append(f"{share} % of it comes back from {source}")
    if result.start is not None:
        titles.append(f"{shared.sd_model.sd_checkpoint_info.name_for_extra}, from the start alone")
    return titles
