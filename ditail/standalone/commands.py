"""What `python -m ditail demo` and `mix` do."""

import itertools
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from .. import images
from ..errors import DitailError
from . import demo_checkpoints
from .arguments import check_partner_files, job_of, size_of
from .files import check_writable, make_folder, save_image, unwritable, whole_file
from .model import Model, load_model, quiet, read_config, read_sides
from .pipeline import (
    Job,
    Progress,
    decode_image,
    evaluations,
    generate,
    image_to_image,
    inversions,
    invert_with,
    transfer,
)
from .sheet import contact_sheet

DEMO = Job(prompts=("",), steps=20, omega=5.0, beta=0.5)
DEMO_ALPHAS = (1.0, 3.0, 8.0)
DEMO_STRENGTH = 0.6


def demo(args: Namespace) -> None:
    """Content in one demo style to the other styles, beside plain generation and img2img."""
    quiet()
    if args.webui:
        copy_to_webui(args.webui)
        return
    make_folder(args.out, "--out")
    scenes = demo_checkpoints.held_out()
    models = {style: load_model(path) for style, path in demo_checkpoints.paths().items()}
    content = scenes.pictures[args.style][args.scene]
    job = DEMO.with_(prompts=(scenes.captions[args.scene],), seeds=(args.seed,))
    targets = [s for s in demo_checkpoints.STYLES if s != args.style]
    runs = len(DEMO_ALPHAS) + 1
    steps = job.steps
    total = steps * (len(DEMO_ALPHAS) + 1 + len(targets) * (runs + 1)) + round(steps * DEMO_STRENGTH) * len(targets)
    with tqdm(total=total, desc="demo", unit="step") as bar:
        rows = demo_rows(models, args.style, targets, content, job, bar.update)
    sheet = args.out / "contact_sheet.png"
    files = {args.out / f"{name} - {label}.png".replace(" ", "_"): image
             for name, row in rows.items() for label, image in row.items()}
    for path, image in {**files, sheet: contact_sheet(f'"{job.prompts[0]}"', rows)}.items():
        with whole_file(path) as part:
            image.save(part, "PNG")
    print(f"{sheet}: open it; the single images are beside it")


def demo_rows(models: dict[str, Model], style: str, targets: Sequence[str], content: Image.Image, job: Job,
              progress: Progress) -> dict[str, dict[str, Image.Image]]:
    """One row a target style: label -> image."""
    source = models[style]
    z0 = source.encode(images.picture_to_tensor(content))
    inverted = {a: invert_with(source, job.with_(alpha=a), z0, progress) for a in DEMO_ALPHAS}
    z_source, passed = generate(source, job, *content.size, progress)
    rows = {}
    for target in targets:
        model = models[target]
        row = {f"content ({style})": content}
        row[f"plain {target}"] = decode_image(model, generate(model, job, *content.size, progress)[0])
        row[f"img2img {DEMO_STRENGTH}"] = decode_image(
            model, image_to_image(model, job, model.encode(images.picture_to_tensor(content)), DEMO_STRENGTH, progress))
        for alpha, latents in inverted.items():
            row[f"Ditail alpha {alpha:g}"] = decode_image(model, transfer(model, job, latents, progress))
        row[f"generated {style}"] = decode_image(source, z_source)
        row["Ditail of generated"] = decode_image(model, transfer(model, job, passed, progress))
        rows[f"{style} to {target}"] = row
    return rows


def copy_to_webui(folder: Path) -> None:
    """Write the demo checkpoints into a WebUI's models folder."""
    models = folder / "models" / "Stable-diffusion"
    if not models.is_dir():
        raise DitailError(f"--webui: {folder} has no models/Stable-diffusion folder")
    for path in demo_checkpoints.write_checkpoints(models).values():
        print(path)


def mix(args: Namespace) -> None:
    """`mix`: invert with the source, drop it, sample with the target."""
    start = time.monotonic()
    quiet()
    if args.out.suffix.lower() != ".png":
        raise DitailError(f"--out: must be a .png file, got {args.out}")
    content = images.read_picture(args.image, "image")
    job = job_of(args, args.prompt, args.seed)
    check_partner_files(args.source, args.target)
    width, height = size_of(args, read_sides(read_config(args.source)), content)
    if args.mask:
        job = job.with_(mask=images.mask_to_latent(images.read_mask(args.mask), width, height, args.resize_mode))
    check_writable(args.out, "--out")
    if args.save_latents:
        check_writable(args.save_latents, "--save-latents")
    source = load_model(args.source)
    z0 = source.encode(images.picture_to_tensor(images.fit(content, width, height, args.resize_mode)))
    source_job = job.with_(prompts=(args.source_prompt or args.prompt,),
                           negative_prompt=args.source_negative_prompt or args.negative_prompt)
    with step_bar("inverting", job, inversions(job, source.alphas_cumprod)) as progress:
        latents = invert_with(source, source_job, z0, progress)
    if args.source == args.target:
        target = source
    else:
        del source  # so that the two models are never in memory together
        target = load_model(args.target)
    with step_bar("sampling", job, evaluations(job, target.alphas_cumprod)) as progress:
        z = transfer(target, job, latents, progress)
    if args.save_latents:
        try:
            latents.save(args.save_latents, {"image": str(args.image), "source": str(args.source)})
        except OSError as error:
            raise unwritable(args.save_latents, error) from error
    settings = {k: str(v) for k, v in vars(args).items() if v is not None and k not in ("command", "out")}
    save_image(decode_image(target, z), args.out, settings)
    print(f"{args.out} ({time.monotonic() - start:.1f} s)")


@contextmanager
def step_bar(description: str, job: Job, calls: int) -> Iterator[Progress]:
    """A bar of the job's steps; what it yields is called `calls` times, which may be more often or less."""
    done = itertools.count(1)
    with tqdm(total=job.steps, desc=description, unit="step") as bar:
        yield lambda: bar.update(next(done) * job.steps // calls - bar.n)
