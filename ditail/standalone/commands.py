"""What the commands of `python -m ditail` do."""

import json
import logging
import math
import os
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..content import images
from ..errors import DitailError
from . import house
from .fanout import Options
from .model import Model, check_checkpoint, check_size, load_model, read_config, read_sides
from .pipeline import Job, evaluations, generate, image_to_image, invert_with, transfer
from .sheet import contact_sheet

DEMO = Job(prompts=("",), steps=20, omega=5.0, beta=0.5)
DEMO_ALPHAS = (1.0, 3.0, 8.0)
DEMO_STRENGTH = 0.6
# A phone's picture is larger: SD at its size would take hours, or all memory.
MOST_PIXELS = 2048 * 2048


def quiet() -> None:
    """Keep the libraries' chatter out of a command's output."""
    warnings.filterwarnings("ignore")
    for name in ("diffusers", "transformers", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def demo(args: Namespace) -> None:
    """Content in one house style to the other styles, beside plain generation and img2img."""
    quiet()
    if args.webui:
        copy_to_webui(args.webui)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    scenes = house.held_out()
    models = {style: load_model(path) for style, path in house.checkpoints().items()}
    content = scenes.pictures[args.style][args.scene]
    job = DEMO.with_(prompts=(scenes.captions[args.scene],), seeds=(args.seed,))
    targets = [s for s in house.STYLES if s != args.style]
    runs = len(DEMO_ALPHAS) + 1
    steps = job.steps
    total = steps * (len(DEMO_ALPHAS) + 1 + len(targets) * (runs + 1)) + round(steps * DEMO_STRENGTH) * len(targets)
    with tqdm(total=total, desc="demo", unit="step") as bar:
        rows = demo_rows(models, args.style, targets, content, job, bar.update)
    for name, pictures in rows.items():
        for label, picture in pictures.items():
            picture.save(args.out / f"{name} - {label}.png".replace(" ", "_"))
    sheet = contact_sheet(f'"{job.prompts[0]}"', rows)
    sheet.save(args.out / "contact_sheet.png")
    print(f"{args.out / 'contact_sheet.png'}: open it; the single pictures are beside it")


def demo_rows(models: dict[str, Model], style: str, targets: Sequence[str], content: Image.Image, job: Job,
              progress) -> dict[str, dict[str, Image.Image]]:
    """One row a target style: label -> picture."""
    source = models[style]
    z0 = source.encode(images.picture_to_tensor(content))
    inverted = {a: invert_with(source, job.with_(alpha=a), z0, progress) for a in DEMO_ALPHAS}
    made, passed = generate(source, job, *content.size, progress)
    rows = {}
    for target in targets:
        model = models[target]
        row = {f"content ({style})": content}
        row[f"plain {target}"] = picture_of(model, generate(model, job, *content.size, progress)[0])
        row[f"img2img {DEMO_STRENGTH}"] = picture_of(
            model, image_to_image(model, job, model.encode(images.picture_to_tensor(content)), DEMO_STRENGTH, progress))
        for alpha, latents in inverted.items():
            row[f"Ditail alpha {alpha:g}"] = picture_of(model, transfer(model, job, latents, progress))
        row[f"generated {style}"] = picture_of(source, made)
        row["Ditail of generated"] = picture_of(model, transfer(model, job, passed, progress))
        rows[f"{style} to {target}"] = row
    return rows


def copy_to_webui(folder: Path) -> None:
    """Write the house checkpoints into a WebUI's models folder."""
    models = folder / "models" / "Stable-diffusion"
    if not models.is_dir():
        raise DitailError("--webui", f"{folder} has no models/Stable-diffusion folder")
    for path in house.write_checkpoints(models).values():
        print(path)


def picture_of(model: Model, z: Tensor) -> Image.Image:
    return images.tensor_to_pictures(model.decode(z))[0]


def mix(args: Namespace) -> None:
    """`mix`: invert with the source, drop it, sample with the target."""
    quiet()
    if args.out.suffix.lower() != ".png":
        raise DitailError("--out", f"must be a .png file, got {args.out}")
    check_writable(args.out, "--out")
    if args.save_latents:
        check_writable(args.save_latents, "--save-latents")
    picture = images.read_picture(args.image, "image")
    job = job_of(args, args.prompt, args.seed)
    check_partner_files(args.source, args.target)
    source = load_model(args.source)
    width, height = size_of(args, (source.size_unit, source.native_side), picture)
    if args.mask:
        job = job.with_(mask=images.mask_to_latent(images.read_mask(args.mask), width, height, args.resize_mode))
    z0 = source.encode(images.picture_to_tensor(images.fit(picture, width, height, args.resize_mode)))
    source_job = job.with_(prompts=(args.source_prompt or args.prompt,),
                           negative_prompt=args.source_negative_prompt or args.negative_prompt)
    with tqdm(total=2 * evaluations(job, source.alphas_cumprod), unit="step") as bar:
        bar.set_description("inverting")
        latents = invert_with(source, source_job, z0, bar.update)
        bar.set_description("sampling")
        # Only now, so that the two models are never in memory together.
        target, source = source if args.source == args.target else None, None
        target = target or load_model(args.target)
        z = transfer(target, job, latents, bar.update)
    if args.save_latents:
        latents.save(args.save_latents, {"image": str(args.image), "source": str(args.source)})
    made = {k: str(v) for k, v in vars(args).items() if v is not None and k not in ("command", "out")}
    save_picture(picture_of(target, z), args.out, made)


def check_partner_files(*paths: Path) -> None:
    """Raise DitailError naming both unless all checkpoints are there, whole and of one architecture."""
    blocks = [check_checkpoint(p) for p in paths]
    for path, count in zip(paths, blocks, strict=True):
        if count != blocks[0]:
            raise DitailError(None, f"{paths[0]} has {blocks[0]} output blocks, {path} has {count}: both must be of one "
                              "architecture")


def matrix(args: Namespace) -> None:
    """`matrix`: see `matrix.run`."""
    quiet()
    from . import matrix as matrices

    paths = checkpoint_paths(args.checkpoints)
    prompts = prompts_of(args)
    picture = images.read_picture(args.image, "image") if args.image else None
    check_partner_files(*paths)
    sizes = {path: size_of(args, read_sides(read_config(path)), picture) for path in paths}
    job = job_of(args, prompts[0], args.seeds[0])
    asked = matrices.Matrix(args.out, sizes, prompts, args.seeds, job, picture)
    for path in matrices.run(asked, options_of(args)):
        print(path)


def prompts_of(args: Namespace) -> list[str]:
    """The prompts given one by one and those in a file, each once. Raises DitailError if there are none."""
    prompts = args.prompt or []
    if args.prompts:
        try:
            lines = args.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DitailError("--prompts", f"{args.prompts} can't be read ({error})") from error
        prompts = prompts + [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DitailError("--prompt", "give one or more prompts, or a file of them with --prompts")
    return list(dict.fromkeys(prompts))


def checkpoint_paths(given: Sequence[Path]) -> list[Path]:
    """The checkpoints of files and folders, each once. Raises DitailError for fewer than two or equal names."""
    paths = [p for g in given for p in (sorted(g.glob("*.safetensors")) if g.is_dir() else [g])]
    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        raise DitailError("matrix", f"needs two checkpoints or more, got {len(paths)}")
    if len({p.stem for p in paths}) < len(paths):
        raise DitailError("matrix", "two checkpoints have the same file name")
    return paths


def evaluate(args: Namespace) -> None:
    """`evaluate`: see `evaluate.run`."""
    quiet()
    from . import evaluate as evaluation

    for path in evaluation.run(args.out, scenes=args.scenes, rows=args.rows, steps=args.steps, thinning=args.thinning,
                               options=options_of(args)):
        print(path)


def bench(args: Namespace) -> None:
    """`bench`: see `bench.run`."""
    quiet()
    from . import bench as benchmark

    benchmark.run(args.out, args.rounds, args.pixels)


def job_of(args: Namespace, prompt: str, seed: int) -> Job:
    return Job((prompt,), args.negative_prompt, (seed,), args.steps, args.sampler, args.cfg, args.alpha, args.beta,
               args.conv_ratio, args.attn_ratio)


def options_of(args: Namespace) -> Options:
    return Options(args.workers, args.threads, args.ray or bool(args.address), args.address)


def size_of(args: Namespace, sides: tuple[int, int], picture: Image.Image | None) -> tuple[int, int]:
    """(width, height): as asked, else the picture's cut down to the model's unit, else the model's own.

    sides: the model's unit and native side.
    """
    unit, native = sides
    own = picture.size if picture else (native, native)
    if not args.width and not args.height and math.prod(own) > MOST_PIXELS:
        raise DitailError("image", f"{own[0]}x{own[1]} is more than can be made at once; give --width and --height")
    width = args.width or max(unit, own[0] // unit * unit)
    height = args.height or max(unit, own[1] // unit * unit)
    check_size(width, height, unit)
    return width, height


def check_writable(path: Path, option: str) -> None:
    """Raise DitailError naming the option for a file that can't be written, before there is any work to lose."""
    if path.is_dir():
        raise DitailError(option, f"{path} is a folder")
    if not path.parent.is_dir():
        raise DitailError(option, f"the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise DitailError(option, f"the folder {path.parent} can't be written to")


def save_picture(picture: Image.Image, path: Path, made: Mapping) -> None:
    """A PNG that says how it was made, written whole or not at all."""
    info = PngInfo()
    info.add_text("ditail", json.dumps({"version": __version__, **made}))
    part = path.with_suffix(".part")
    try:
        picture.save(part, "PNG", pnginfo=info)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
