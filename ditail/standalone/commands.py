"""What the commands of `python -m ditail` do."""

import json
import logging
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from .. import __version__, images
from ..errors import DitailError
from ..latents import SourceLatents
from . import house
from .model import Model, check_checkpoint, load_model
from .pipeline import Job, evaluations, generate, image_to_image, invert_with, transfer
from .sheet import contact_sheet, grid_sheet

logger = logging.getLogger("ditail")
DEMO = Job(prompts=("",), steps=20, omega=5.0, beta=0.5)
DEMO_ALPHAS = (1.0, 3.0, 8.0)
DEMO_STRENGTH = 0.6


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
        raise DitailError(f"--webui: {folder} has no models/Stable-diffusion folder")
    for path in house.write_checkpoints(models).values():
        print(path)


def picture_of(model: Model, z: Tensor) -> Image.Image:
    return images.tensor_to_pictures(model.decode(z))[0]


def mix(args: Namespace) -> None:
    """`mix`: invert with the source, drop it, sample with the target."""
    quiet()
    check_writable(args.out)
    picture = images.read_picture(args.image, "image")
    job = job_of(args)
    check_partner_files(args.source, args.target)
    source = load_model(args.source)
    width, height = size_of(args, source, picture)
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
    save_picture(picture_of(target, z), args.out, args)


def check_partner_files(*paths: Path) -> None:
    """Raise DitailError naming both unless all checkpoints are there, whole and of one architecture."""
    blocks = [check_checkpoint(p) for p in paths]
    for path, count in zip(paths, blocks, strict=True):
        if count != blocks[0]:
            raise DitailError(f"{paths[0]} has {blocks[0]} output blocks, {path} has {count}: both must be of one "
                              "architecture")


def matrix(args: Namespace) -> None:
    """`matrix`: content of the row's checkpoint, style of the column's; the diagonal is plain generation."""
    quiet()
    paths = checkpoint_paths(args.checkpoints)
    job = job_of(args)
    picture = images.read_picture(args.image, "image") if args.image else None
    check_partner_files(*paths)
    args.out.mkdir(parents=True, exist_ok=True)
    check_resumable(args, paths)
    names = [p.stem for p in paths]
    cells = {(i, j): args.out / f"{a} in {b}.png" for i, a in enumerate(names) for j, b in enumerate(names)}
    latents = matrix_sources(args, job, paths, picture, cells)
    for j, path in enumerate(tqdm(paths, desc="targets", unit="checkpoint")):
        missing = [i for i in range(len(paths)) if i != j and not cells[i, j].exists()]
        if missing:
            target = load_model(path)
            for i in missing:
                save_picture(picture_of(target, transfer(target, job, latents(i))), cells[i, j], args)
    grid = [[Image.open(cells[i, j]) for j in range(len(names))] for i in range(len(names))]
    sheet = grid_sheet(f'"{args.prompt}": content of the row, style of the column', names, names, grid)
    sheet.save(args.out / "matrix.png")
    print(args.out / "matrix.png")


def matrix_sources(args: Namespace, job: Job, paths: Sequence[Path], picture: Image.Image | None, cells: dict):
    """Make every row's source latents and the diagonal, each once; a function from row to latents is returned."""
    for i, path in enumerate(tqdm(paths, desc="sources", unit="checkpoint")):
        file = args.out / f"{path.stem}.latents.safetensors"
        if file.exists() and cells[i, i].exists():
            continue
        model = load_model(path)
        width, height = size_of(args, model, picture)
        z, latents = generate(model, job, width, height)
        if picture:
            z0 = model.encode(images.picture_to_tensor(images.fit(picture, width, height)))
            latents = invert_with(model, job, z0)
        latents.save(file)
        save_picture(picture_of(model, z), cells[i, i], args)
    return lambda i: SourceLatents.load(args.out / f"{paths[i].stem}.latents.safetensors")[0]


def checkpoint_paths(given: Sequence[Path]) -> list[Path]:
    """The checkpoints of files and folders, each once. Raises DitailError for fewer than two or equal names."""
    paths = [p for g in given for p in (sorted(g.glob("*.safetensors")) if g.is_dir() else [g])]
    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        raise DitailError(f"matrix: needs two checkpoints or more, got {len(paths)}")
    if len({p.stem for p in paths}) < len(paths):
        raise DitailError("matrix: two checkpoints have the same file name")
    return paths


def check_resumable(args: Namespace, paths: Sequence[Path]) -> None:
    """Write down what a matrix folder was made with; DitailError if it was made with something else."""
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("out", "checkpoints", "command")}
    settings["checkpoints"] = {p.stem: [p.stat().st_size, p.stat().st_mtime_ns] if p.is_file() else None
                               for p in paths}
    file = args.out / "matrix.json"
    if file.exists():
        before = json.loads(file.read_text())
        kept = {n: s for n, s in before["checkpoints"].items() if n in settings["checkpoints"]}
        if {**settings, "checkpoints": None} != {**before, "checkpoints": None} or any(
                settings["checkpoints"][n] != s for n, s in kept.items()):
            raise DitailError(f"{args.out}: holds a matrix of other settings or checkpoints; choose another folder")
    file.write_text(json.dumps(settings, indent=1))


def evaluate(args: Namespace) -> None:
    """`evaluate`: see `evaluate.run`."""
    quiet()
    from . import evaluate as evaluation

    for path in evaluation.run(args.out, scenes=args.scenes, rows=args.rows, steps=args.steps, thinning=args.thinning):
        print(path)


def bench(args: Namespace) -> None:
    """`bench`: see `bench.run`."""
    quiet()
    from . import bench as benchmark

    benchmark.run(args.out, args.rounds, args.pixels)


def job_of(args: Namespace) -> Job:
    return Job((args.prompt,), args.negative_prompt, (args.seed,), args.steps, args.sampler, args.cfg, args.alpha,
               args.beta, args.conv_ratio, args.attn_ratio)


def size_of(args: Namespace, model: Model, picture: Image.Image | None) -> tuple[int, int]:
    """(width, height): as asked, else the picture's cut down to the model's unit, else the model's own."""
    unit = model.size_unit
    own = picture.size if picture else (model.native_side, model.native_side)
    width = args.width or max(unit, own[0] // unit * unit)
    height = args.height or max(unit, own[1] // unit * unit)
    model.check_size(width, height)
    return width, height


def check_writable(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise DitailError(f"--out: must be a .png file, got {path}")
    if not path.parent.is_dir():
        raise DitailError(f"--out: the folder {path.parent} does not exist")


def save_picture(picture: Image.Image, path: Path, args: Namespace) -> None:
    """A PNG that says how it was made, written whole or not at all."""
    info = PngInfo()
    made = {k: str(v) for k, v in vars(args).items() if v is not None and k not in ("command", "out")}
    info.add_text("ditail", json.dumps({"version": __version__, **made}))
    part = path.with_suffix(".part")
    picture.save(part, "PNG", pnginfo=info)
    part.replace(path)


