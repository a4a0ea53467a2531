"""What `python -m ditail mix` does: one job of the job layer for each content image."""

import json
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..cache.folder import LatentFolder
from ..cache.latents import LatentCache
from ..content.images import LATENT_SCALE, read_image, read_mask, tensor_to_images
from ..errors import DitailError
from ..job.host import Checkpoint, Row
from ..job.job import Job as DitailJob
from ..job.request import Request
from .arguments import check_partner_files, job_of, size_of
from .checkpoint_files import read_config, read_sides
from .files import check_writable, make_folder, save_image, unwritable
from .host import FileHost, FileLibrary, LastModel, step_bar
from .samplers import seeded_noise
from .sampling import new_sampler, sample

RAM_BYTES, DISK_BYTES = 2**30, 2**32
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
# The arguments that are settings of the same name.
SETTINGS = ("alpha", "beta", "conv_ratio", "attn_ratio", "source_prompt", "source_negative_prompt", "resize_mode",
            "start", "layers", "preset", "inject", "guidance_until", "source_latents", "inversion_steps", "tone")


class Content(NamedTuple):
    """One content image (None: the source generates it), its file, its prompt, and the file to write."""

    image: Image.Image | None
    path: Path | None
    prompt: str
    out: Path


def command(args: Namespace) -> None:
    """The content of each image (or of images that the source generates) in the target's style."""
    library = FileLibrary()
    check_partner_files(args.source, args.target)
    target = _found(library, args.target)
    contents = list(contents_of(args))
    requests = [Request.from_values(values_of(args, content.image), library) for content in contents]
    for content in contents:
        check_writable(content.out, "--out")
    if args.save_latents:
        check_writable(args.save_latents, "--save-latents")
    folder = LatentFolder(args.cache, DISK_BYTES) if args.cache else None
    cache, load = LatentCache(RAM_BYTES, folder), LastModel()
    for content, request in zip(contents, requests, strict=True):
        mix_one(args, content, request, target, load, cache)


def mix_one(args: Namespace, content: Content, request: Request, target: Checkpoint, load: LastModel,
            cache: LatentCache) -> None:
    """One content image; as many images as there are seeds."""
    start, seeds = time.monotonic(), args.seeds
    size = size_of(args, read_sides(read_config(Path(target.path))), request.image)
    job = job_of(args, content.prompt, seeds[0]).with_(prompts=(content.prompt,) * len(seeds), seeds=tuple(seeds))
    host = FileHost(load, target, job, size, min(args.batch_size, len(seeds)))
    # The source pass comes first and the target is loaded after it, so two models are never in memory together.
    ditail = DitailJob(host, request, cache)
    ditail.prepare([])
    if args.save_latents:
        source = ditail.samplings[False].sources[0]
        try:
            ditail.latents[source.key].save(args.save_latents, {"image": str(args.image), "source": str(args.source)})
        except OSError as error:
            raise unwritable(args.save_latents, error) from error
    made = {k: str(v) for k, v in vars(args).items() if v is not None and k not in ("command", "out")}
    for number, image in enumerate(sampled(host, ditail)):
        path = content.out if len(seeds) == 1 else content.out.with_stem(f"{content.out.stem} {seeds[number]}")
        save_image(image, path, {**made, "image": str(content.path or ""), "seed": seeds[number]})
        print(f"{path} ({time.monotonic() - start:.1f} s)")


def sampled(host: FileHost, ditail: DitailJob) -> Iterator[Image.Image]:
    """The images of a prepared job, in batches."""
    width, height = host.job.size
    for first in range(0, len(host.job.job.prompts), host.job.batch_size):
        job, model = host.job.images(first), host.model()
        sampler = new_sampler(model, job)
        noise = seeded_noise((4, height // LATENT_SCALE, width // LATENT_SCALE), list(job.seeds)).to(model.device)
        ditail.attach(noise, noise, hires=False, first=first)
        try:
            z = _with_bar(host, ditail, model, job, sampler, noise, first)
        finally:
            ditail.detach()
        yield from tensor_to_images(model.decode(z))


def _with_bar(host: FileHost, ditail: DitailJob, model, job, sampler, noise: Tensor, first: int) -> Tensor:
    def before_step(rows: Sequence[Row]) -> None:
        host.target.expect(rows)
        ditail.follow(hires=False, first=first)

    with step_bar("sampling", job.steps, len(sampler.schedule)) as progress:
        return sample(model, job, sampler, noise, progress, before_step=before_step,
                      guided_above=ditail.guided_above(hires=False))


def values_of(args: Namespace, image: Image.Image | None) -> dict:
    """The settings by key that the arguments say, over those of `--settings`."""
    values = {**read_settings(args.settings), "enabled": True, "source_checkpoint": str(args.source)}
    values |= {key: value for key in SETTINGS if (value := getattr(args, key)) is not None}
    if args.generate:
        values["source"] = "generate"
    if image is not None:
        values["image"] = image
    if args.mask:
        values["mask"] = read_mask(args.mask)
    return values


def read_settings(path: Path | None) -> dict:
    """A JSON file with settings as the API takes them; images may be paths. Raises DitailError naming the option."""
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DitailError("--settings", f"{path} can't be read as JSON ({error})") from error
    if not isinstance(values, Mapping):
        raise DitailError("--settings", f"{path} must hold one object")
    return {key: _with_images(value, path.parent) if key in ("sources", "collage") else _read(key, value, path.parent)
            for key, value in values.items()}


def _with_images(entries, folder: Path):
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return entries
    return [{key: _read(key, value, folder) for key, value in entry.items()} if isinstance(entry, Mapping) else entry
            for entry in entries]


def _read(key: str, value, folder: Path):
    """An image's path as the image; whatever is none stays, for the settings' own check."""
    if key not in ("image", "mask") or not isinstance(value, str) or not (folder / value).is_file():
        return value
    return (read_mask if key == "mask" else read_image)(folder / value, key)


def contents_of(args: Namespace) -> Iterator[Content]:
    """The content images of the arguments: one, a folder of them, or none for a generated source.

    A text file beside an image, with its name and `.txt`, is its prompt instead of `--prompt`.
    """
    if args.image is None:
        if args.prompt is None:
            raise DitailError("--prompt", "say what the image is to show")
        yield Content(None, None, args.prompt, _as_png(args.out))
        return
    folder = args.image.is_dir()
    paths = sorted(p for p in args.image.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if folder else [args.image]
    if not paths:
        raise DitailError("--image", f"{args.image} has no images")
    if folder:
        make_folder(args.out, "--out")
    for path in paths:
        image, text = read_image(path), path.with_suffix(".txt")
        prompt = text.read_text(encoding="utf-8").strip() if text.is_file() else args.prompt
        if prompt is None:
            raise DitailError("--prompt", f"say what {path} shows, or write it into {text}")
        yield Content(image, path, prompt, args.out / f"{path.stem}.png" if folder else _as_png(args.out))


def _as_png(path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise DitailError("--out", f"must be a .png file, got {path}")
    return path


def _found(library: FileLibrary, path: Path) -> Checkpoint:
    checkpoint = library.find_checkpoint(str(path))
    if checkpoint is None:
        raise DitailError("--target", "must name a checkpoint")
    return checkpoint
