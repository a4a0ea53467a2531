"""Jobs, sizes, prompts and checkpoints from a command's arguments, checked before a model is loaded."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import DitailError
from .checkpoint_files import check_checkpoint
from .files import caseless, read_text
from .model import check_size
from .sampling import SamplingJob

# Budgets of the cache of source latents, in RAM and on disk.
RAM_BYTES, DISK_BYTES = 2**30, 2**32
# A phone's photo is larger: sampling at its size would take hours, or all memory.
MAX_PIXELS = 2048 * 2048


def check_checkpoints(*paths: Path) -> None:
    """Raise DitailError unless all checkpoints exist, can be loaded and are of one family."""
    families = [check_checkpoint(p) for p in paths]
    for path, family in zip(paths, families, strict=True):
        if family != families[0]:
            raise DitailError(str(path), f"is {family}, {paths[0]} is {families[0]}: all must be of one family")


def job_of(args: Namespace) -> SamplingJob:
    """The sampling of the arguments, without a prompt yet."""
    return SamplingJob(("",), args.negative_prompt, (0,), args.steps, args.sampler, args.cfg)


def size_of(args: Namespace, sides: tuple[int, int], image: Image.Image | None) -> tuple[int, int]:
    """(width, height) in pixels: of the arguments, else the image's, rounded down to the model's unit, else the native.

    sides: the model's unit and native side, in pixels.
    """
    unit, native = sides
    default = image.size if image else (native, native)
    if not args.width and not args.height and math.prod(default) > MAX_PIXELS:
        raise DitailError(None, f"image: {default[0]}x{default[1]} is more than can be made at once; give --width and "
                          "--height")
    width = args.width or max(unit, default[0] // unit * unit)
    height = args.height or max(unit, default[1] // unit * unit)
    check_size(width, height, unit)
    return width, height


def prompts_of(args: Namespace) -> list[str]:
    """The distinct prompts of --prompt and of the file of --prompts.

    Raises DitailError if there are none, and for a file that can't be read.
    """
    prompts = args.prompt or []
    if args.prompts:
        lines = read_text(args.prompts, "--prompts").splitlines()
        prompts = prompts + [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DitailError(None, "--prompt: give one or more prompts, or a file of them with --prompts")
    return list(dict.fromkeys(prompts))


def checkpoint_paths(arguments: Sequence[Path]) -> list[Path]:
    """The distinct checkpoints in files and folders. Raises DitailError for fewer than two, or equal file names."""
    paths = [p for a in arguments for p in (sorted(a.glob("*.safetensors")) if a.is_dir() else [a])]
    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        raise DitailError(None, f"matrix: needs two checkpoints or more, got {len(paths)}")
    if len({caseless(Path(p.stem)) for p in paths}) < len(paths):
        raise DitailError(None, "matrix: two checkpoints have the same file name")
    return paths
