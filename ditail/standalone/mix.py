"""`python -m ditail mix`: one job of the job layer for each content image."""

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..cache.folder import LatentFolder
from ..cache.latents import LatentCache
from ..content.images import read_image
from ..errors import DitailError
from ..job.job import Job
from ..job.request import Request
from ..job.source import distinct
from .arguments import DISK_BYTES, RAM_BYTES, check_checkpoints, job_of, size_of
from .checkpoint_files import read_config, read_sides
from .files import (
    caseless,
    check_name,
    check_overwrites,
    check_writable,
    make_folder,
    read_text,
    save_image,
    unwritable,
)
from .host import FileHost, FileLibrary, LoadedModels
from .progress import StepBars
from .run import images_of
from .values import files_of, values_of

# So many images of a folder are in memory, and their sources are computed before the first of them is sampled.
AT_ONCE = 16
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Content(NamedTuple):
    """A content image. path: its file; None if the source checkpoint generates it. out: the file to write."""

    path: Path | None
    prompt: str
    out: Path


class Mix(NamedTuple):
    """One content image with its job."""

    content: Content
    host: FileHost
    job: Job


def command(args: Namespace) -> None:
    """Run `python -m ditail mix` (options: `cli.add_mix`)."""
    check_checkpoints(args.source, args.target)
    contents = list(contents_of(args))
    values = {**values_of(args), "source_checkpoint": str(args.source)}
    if args.generate or args.image:
        values["source"] = "generate" if args.generate else "image"
    elif not (values.get("image") or values.get("collage") or values.get("source") == "generate"):
        raise DitailError("--image", "give a content image or a folder of them, or --generate")
    cache = LatentCache(RAM_BYTES, LatentFolder(args.cache, DISK_BYTES) if args.cache else None)
    load = LoadedModels()

    def mixes(batch: Sequence[Content]) -> Iterator[Mix]:
        return (mix_of(args, content, values, load, cache) for content in batch)

    # All of them are checked before a model is loaded, so that an error of the last one is raised at once.
    check_outputs(args, mixes(contents))
    for first in range(0, len(contents), AT_ONCE):
        run(args, list(mixes(contents[first : first + AT_ONCE])))


def mix_of(args: Namespace, content: Content, values: Mapping, load: LoadedModels, cache: LatentCache) -> Mix:
    """The job of one content image, with one image per seed."""
    seeds, library = tuple(args.seeds), FileLibrary()
    image = {"image": read_image(content.path)} if content.path else {}
    request = Request.from_values({**values, **image}, library)
    size = size_of(args, read_sides(read_config(args.target)), request.image)
    job = job_of(args).with_(prompts=(content.prompt,) * len(seeds), seeds=seeds)
    host = FileHost(load, library.checkpoint(args.target), job, size, min(args.batch_size, len(seeds)),
                    StepBars(job.steps))
    return Mix(content, host, Job(host, request, cache))


def check_outputs(args: Namespace, mixes: Iterable[Mix]) -> None:
    """Raise DitailError for a file that can't be written, would be written twice, or is one of the user's."""
    owners: dict[str, Path | None] = {}
    inputs = [args.source, args.target, *filter(None, (args.mask, args.settings)), *files_of(args.settings)]
    outputs = []
    for mix in mixes:
        source = mix.content.path
        check_writable(mix.content.out, "--out")
        for path in paths_of(args, mix):
            check_name(path, "--out")
            if (key := caseless(path)) in owners:
                raise DitailError("--out", f"{owners[key]} and {source} would both become {path}; rename one of them")
            owners[key] = source
            outputs.append(path)
        if source:
            inputs += [source, source.with_suffix(".txt")]
    check_overwrites(outputs, inputs, "--out")
    if args.save_latents:
        check_writable(args.save_latents, "--save-latents")
        check_overwrites([args.save_latents], inputs, "--save-latents")
        if caseless(args.save_latents) in owners:
            raise DitailError("--save-latents", f"{args.save_latents} is an image of --out; choose another name")


def paths_of(args: Namespace, mix: Mix) -> list[Path]:
    """The files that the images of one content image may be written to."""
    out = mix.content.out
    paths = [path_of(args, out, seed) for seed in args.seeds]
    if mix.job.request.settings.show_source:
        paths += [source_path_of(out), *(source_path_of(out, seed) for seed in args.seeds)]
    return paths


def path_of(args: Namespace, out: Path, seed: int) -> Path:
    return out if len(args.seeds) == 1 else out.with_stem(f"{out.stem} {seed}")


def source_path_of(out: Path, seed: int | None = None) -> Path:
    """The file of a source's image; seed: where there are several sources."""
    return out.with_stem(f"{out.stem} source" if seed is None else f"{out.stem} {seed} source")


def run(args: Namespace, mixes: list[Mix]) -> None:
    """Generate the images of a few content images, loading each model once for all of them."""
    start = time.monotonic()
    if len(mixes) > 1:
        for mix in mixes:
            mix.job.prepare_ahead([])
    for mix in mixes:
        mix.job.prepare([])
        save_latents(args, mix.job)
        for path in _save(args, mix):
            print(f"{path} ({time.monotonic() - start:.1f} s)")
            start = time.monotonic()


def _save(args: Namespace, mix: Mix) -> Iterator[Path]:
    """Write the images of one content image, and yield their paths."""
    metadata = {k: str(v) for k, v in vars(args).items() if v is not None and k not in ("command", "out")}
    metadata |= {"image": str(mix.content.path or ""), "prompt": mix.content.prompt}
    out = mix.content.out
    for seed, image in zip(args.seeds, images_of(mix.host, mix.job), strict=True):
        path = path_of(args, out, seed)
        save_image(image, path, {**metadata, "seed": seed})
        yield path
    if mix.job.request.settings.show_source:
        sources = distinct(mix.job.samplings[False].sources)
        for source in sources:
            seed = args.seeds[source.image_number]
            path = source_path_of(out, seed if len(sources) > 1 else None)
            save_image(source.content_image(mix.job.latents), path, {**metadata, "seed": seed})
            yield path


def save_latents(args: Namespace, job: Job) -> None:
    """Write the source latents of the first image to the file of `--save-latents`, if it is given."""
    if not args.save_latents:
        return
    source = job.samplings[False].sources[0]
    try:
        job.latents[source.key].save(args.save_latents, {"image": str(args.image), "source": str(args.source)})
    except OSError as error:
        raise unwritable(args.save_latents, error) from error


def contents_of(args: Namespace) -> Iterator[Content]:
    """The content images of the arguments: one, a folder of them, or none for a generated source.

    A text file beside an image, named like it with `.txt`, has its prompt instead of `--prompt`. Raises DitailError
    for a folder without images, a text that can't be read, and an image without a prompt.
    """
    if args.image is None:
        if args.prompt is None:
            raise DitailError("--prompt", "say what the image is to show")
        yield Content(None, args.prompt, _as_png(args.out))
        return
    folder = args.image.is_dir()
    paths = sorted(p for p in args.image.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if folder else [args.image]
    if not paths:
        raise DitailError("--image", f"{args.image} has no images")
    if folder and args.save_latents:
        raise DitailError("--save-latents", f"needs one content image, and {args.image} is a folder")
    if folder:
        make_folder(args.out, "--out")
    for path in paths:
        text = path.with_suffix(".txt")
        prompt = read_text(text).strip() if text.is_file() else args.prompt
        if prompt is None:
            raise DitailError("--prompt", f"say what {path} shows, or write it into {text}")
        yield Content(path, prompt, args.out / f"{path.stem}.png" if folder else _as_png(args.out))


def _as_png(path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise DitailError("--out", f"must be a .png file, got {path}")
    return path
