"""What `python -m ditail demo` does."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..content import images
from ..errors import DitailError
from . import demo_checkpoints
from .files import make_folder, whole_file
from .model import Model, load_model, quiet
from .pipeline import image_to_image, invert_with, transfer
from .sampling import Job, Progress, decode_image, generate
from .sheet import contact_sheet

DEMO = Job(prompts=("",), steps=20, omega=5.0, beta=0.5)
DEMO_ALPHAS = (1.0, 3.0, 8.0)
DEMO_STRENGTH = 0.6


def command(args: Namespace) -> None:
    """Content in one demo style to the other styles, beside plain generation and img2img."""
    quiet()
    if args.webui:
        copy_to_webui(args.webui)
        return
    make_folder(args.out, "--out")
    scenes = demo_checkpoints.held_out()
    models = {style: load_model(path) for style, path in demo_checkpoints.paths().items()}
    content = scenes.images[args.style][args.scene]
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
    z0 = source.encode(images.image_to_tensor(content))
    inverted = {a: invert_with(source, job.with_(alpha=a), z0, progress) for a in DEMO_ALPHAS}
    z_source, passed = generate(source, job, *content.size, progress)
    rows = {}
    for target in targets:
        model = models[target]
        row = {f"content ({style})": content}
        row[f"plain {target}"] = decode_image(model, generate(model, job, *content.size, progress)[0])
        row[f"img2img {DEMO_STRENGTH}"] = decode_image(
            model, image_to_image(model, job, model.encode(images.image_to_tensor(content)), DEMO_STRENGTH, progress))
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
        raise DitailError(None, f"--webui: {folder} has no models/Stable-diffusion folder")
    for path in demo_checkpoints.write_checkpoints(models).values():
        print(path)
