"""Jobs, sizes, prompts and checkpoints from a command's arguments, checked before anything is loaded."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import DitailError
from .checkpoint_files import check_checkpoint
from .model import check_size
from .sampling import Job

# Of the cache of source latents, in memory and on disk.
RAM_BYTES, DISK_BYTES = 2**30, 2**32
# A phone's image is larger: SD at its size would take hours, or all memory.
MOST_PIXELS = 2048 * 2048


def check_partner_files(*paths: Path) -> None:
    """Raise DitailError naming both unless all checkpoints are there, whole and of one family."""
    families = [check_checkpoint(p) for p in paths]
    for path, family in zip(paths, families, strict=True):
        if family != families[0]:
            raise DitailError(str(path), f"is {family}, {paths[0]} is {families[0]}: all must be of one family")


def job_of(args: Namespace) -> Job:
    """The sampling that the arguments ask for, as yet of no prompt."""
    return Job(("",), args.negative_prompt, (0,), args.steps, args.sampler, args.cfg)


def size_of(args: Namespace, sides: tuple[int, int], image: Image.Image | None) -> tuple[int, int]:
    """(width, height): as asked, else the image's cut down to the model's unit, else the model's own.

    sides: the model's unit and native side.
    """
    unit, native = sides
    default = image.size if image else (native, native)
    if not args.width and not args.height and math.prod(default) > MOST_PIXELS:
        raise DitailError(None, f"image: {default[0]}x{default[1]} is more than can be made at once; give --width and "
                          "--height")
    width = args.width or max(unit, default[0] // unit * unit)
    height = args.height or max(unit, default[1] // unit * unit)
    check_size(width, height, unit)
    return width, height


def prompts_of(args: Namespace) -> list[str]:
    """The prompts given one by one and those in a file, each once. Raises DitailError if there are none."""
    prompts = args.prompt or []
    if args.prompts:
        try:
            lines = args.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DitailError(None, f"--prompts: {args.prompts} can't be read ({error})") from error
        prompts = prompts + [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DitailError(None, "--prompt: give one or more prompts, or a file of them with --prompts")
    return list(dict.fromkeys(prompts))


def checkpoint_paths(given: Sequence[Path]) -> list[Path]:
    """The checkpoints of files and folders, each once. Raises DitailError for fewer than two or equal names."""
    paths = [p for g in given for p in (sorted(g.glob("*.safetensors")) if g.is_dir() else [g])]
    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        raise DitailError(None, f"matrix: needs two checkpoints or more, got {len(paths)}")
    if len({p.stem for p in paths}) < len(paths):
        raise DitailError(None, "matrix: two checkpoints have the same file name")
    return paths
