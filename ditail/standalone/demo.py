"""`python -m ditail demo`: the demo checkpoints mixed, beside plain generation and img2img."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image
from tqdm import tqdm

from ..cache.latents import LatentCache
from ..content.images import image_to_tensor
from ..content.presets import DEFAULT_PRESET
from ..errors import DitailError
from ..job.job import Job
from ..job.request import Request
from . import demo_checkpoints
from .arguments import RAM_BYTES
from .files import make_folder, whole_file
from .host import FileHost, FileLibrary, LoadedModels
from .run import images_of
from .sampling import SamplingJob, decode_image, generate, image_to_image
from .sheet import contact_sheet

DEMO = SamplingJob(prompts=("",), steps=20, omega=5.0)
DEMO_PRESETS = ("Paper", "Style", "Balanced", "Structure")
DEMO_STRENGTH = 0.6


def command(args: Namespace) -> None:
    """Mix each scene's image with the other demo styles, and write the images and a contact sheet."""
    if args.webui:
        copy_to_webui(args.webui)
        return
    make_folder(args.out, "--out")
    held_out = demo_checkpoints.held_out()
    load, cache = LoadedModels(len(demo_checkpoints.STYLES)), LatentCache(RAM_BYTES)
    demos = []
    for scene in args.scenes:
        job = DEMO.with_(prompts=(held_out.captions[scene],), seeds=(args.seed,))
        demos.append(Demo(args.style, held_out.images[args.style][scene], job, load, cache))
    targets = [style for style in demo_checkpoints.STYLES if style != args.style]
    rows: dict[str, dict[str, Image.Image]] = {}
    with tqdm(total=len(demos) * len(targets) * Demo.count, desc="demo", unit="image") as bar:
        for demo in demos:
            for target in targets:
                row = rows.setdefault(f"{demo.job.prompts[0]}, {args.style} to {target}", {})
                for label, image in demo.images(target):
                    row[label] = image
                    bar.update()
    sheet = args.out / "contact_sheet.png"
    files = {args.out / f"{name} - {label}.png".replace(",", "").replace(" ", "_"): image
             for name, row in rows.items() for label, image in row.items()}
    for path, image in {**files, sheet: contact_sheet("Content in other styles", rows)}.items():
        with whole_file(path) as part:
            image.save(part, "PNG")
    print(f"{sheet}: open it; the single images are beside it")


@dataclass(frozen=True)
class Demo:
    """The images of one content image, with the models and source latents that all targets share."""

    style: str
    content: Image.Image
    job: SamplingJob
    load: LoadedModels
    cache: LatentCache

    # The number of images for each target.
    count: ClassVar[int] = len(DEMO_PRESETS) + 5

    def images(self, target: str) -> Iterator[tuple[str, Image.Image]]:
        """(label, image) for one target style."""
        model = self.load(demo_checkpoints.paths()[target])
        yield f"content ({self.style})", self.content
        yield f"plain {target}", decode_image(model, generate(model, self.job, *self.content.size)[0])
        z0 = model.encode(image_to_tensor(self.content))
        yield f"img2img {DEMO_STRENGTH}", decode_image(model, image_to_image(model, self.job, z0, DEMO_STRENGTH))
        for preset in DEMO_PRESETS:
            _, image = self._mix(target, {"image": self.content, "preset": preset})
            yield f"Ditail, {preset}", image
        generated, image = self._mix(target, {"source": "generate", "show_source": True, "preset": DEFAULT_PRESET})
        yield f"generated {self.style}", generated
        yield f"{target} of generated", image

    def _mix(self, target: str, values: dict) -> tuple[Image.Image, Image.Image]:
        """(the content image, the image in the target's style)."""
        paths, library = demo_checkpoints.paths(), FileLibrary()
        request = Request.from_values({"enabled": True, **values, "source_checkpoint": str(paths[self.style])}, library)
        host = FileHost(self.load, library.checkpoint(paths[target]), self.job, self.content.size)
        job = Job(host, request, self.cache)
        job.prepare([])
        return job.samplings[False].sources[0].content_image(job.latents), next(images_of(host, job))


def copy_to_webui(folder: Path) -> None:
    """Write the demo checkpoints and their LoRA into a WebUI's models folder."""
    models = folder / "models" / "Stable-diffusion"
    if not models.is_dir():
        raise DitailError(None, f"--webui: {folder} has no models/Stable-diffusion folder")
    for path in demo_checkpoints.write_checkpoints(models).values():
        print(path)
    print(demo_checkpoints.write_lora(folder / "models" / "Lora"))
