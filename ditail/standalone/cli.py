"""The command line: `python -m ditail demo | mix | matrix | evaluate | bench`."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ..content.settings import BY_KEY
from ..errors import DitailError
from .fanout import TasksFailed
from .names import SAMPLER_NAMES

MOST_SEED = 2**32 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, else one sentence on stderr.

    1: something failed, 2: bad input, 130: interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        # Imported after the arguments are known to be good: transformers and diffusers take seconds to load.
        from . import commands

        getattr(commands, args.command)(args)
    except (DitailError, OSError) as error:  # OSError: a folder that can't be written to, a full disk
        print(f"ditail: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, TasksFailed) else 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        print("ditail: there is not enough memory for this; ask for a smaller --width and --height", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ditail: interrupted", file=sys.stderr)
        return 130
    return 0


def number(key: str, low: float, high: float, whole: bool = False):
    """An argparse type that names the option and its range."""

    def parse(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise argparse.ArgumentTypeError(f"{key} must be {kind} from {low:g} to {high:g}, got {text!r}")
        return value

    return parse


def seeds(text: str) -> list[int]:
    """An argparse type: comma-separated seeds, each once."""
    one = number("--seed", 0, MOST_SEED, whole=True)
    return list(dict.fromkeys(one(part) for part in text.split(",")))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ditail", description="Diffusion Cocktail: the content of one "
                                     "diffusion model's image, or of a photo, in another model's style.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_demo(commands.add_parser("demo", help="mix the house checkpoints that ship with the project"))
    add_mix(commands.add_parser("mix", help="one picture's content in one checkpoint's style"))
    add_matrix(commands.add_parser("matrix", help="m checkpoints give m x m pictures"))
    add_evaluate(commands.add_parser("evaluate", help="measure structure and style on the house checkpoints"))
    add_bench(commands.add_parser("bench", help="count and time what Ditail costs beside plain generation"))
    return parser


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the PNGs (default: %(default)s)")
    parser.add_argument("--scene", type=number("--scene", 0, 119, whole=True), default=10,
                        help="which of the held-out scenes is the content picture (default: %(default)s)")
    parser.add_argument("--style", choices=("noto", "flat", "ink"), default="noto",
                        help="the content picture's style (default: %(default)s)")
    parser.add_argument("--seed", type=number("--seed", 0, MOST_SEED, whole=True), default=1,
                        help="(default: %(default)s)")
    parser.add_argument("--webui", type=Path, metavar="DIR", help="instead: copy the house checkpoints into the models "
                        "folder of this WebUI (or of its --data-dir)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    def ratio(key: str):
        return number(f"--{key.replace('_', '-')}", BY_KEY[key].low, BY_KEY[key].high)

    parser.add_argument("--negative-prompt", default="", help='(default: "%(default)s")')
    parser.add_argument("--steps", type=number("--steps", 1, 999, whole=True), default=20,
                        help="(default: %(default)s)")
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, default="DDIM", help="(default: %(default)s)")
    parser.add_argument("--cfg", type=number("--cfg", 1, 30), default=7.5, help="CFG scale, the paper's omega "
                        "(default: %(default)s)")
    parser.add_argument("--width", type=number("--width", 8, 8192, whole=True), help="pixels (default: the picture's, "
                        "cut to what the model can make; without one the model's own)")
    parser.add_argument("--height", type=number("--height", 8, 8192, whole=True), help="as --width")
    for key in ("alpha", "beta", "conv_ratio", "attn_ratio"):
        parser.add_argument(f"--{key.replace('_', '-')}", type=ratio(key), default=BY_KEY[key].default,
                            help=f"{BY_KEY[key].help} (default: %(default)s)")


def add_mix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, required=True, help="checkpoint that supplies the content "
                        "(.safetensors with its .yaml beside it)")
    parser.add_argument("--target", type=Path, required=True, help="checkpoint that supplies the style")
    parser.add_argument("--image", type=Path, required=True, help="the content picture")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--prompt", required=True, help="what the picture shows")
    parser.add_argument("--seed", type=number("--seed", 0, MOST_SEED, whole=True), default=0,
                        help="(default: %(default)s)")
    add_sampling(parser)
    parser.add_argument("--resize-mode", choices=BY_KEY["resize_mode"].choices, default=BY_KEY["resize_mode"].default,
                        help=f"{BY_KEY['resize_mode'].help} (default: %(default)s)")
    parser.add_argument("--mask", type=Path, help="picture of the same proportions, white = take the content")
    parser.add_argument("--source-prompt", default="", help=BY_KEY["source_prompt"].help)
    parser.add_argument("--source-negative-prompt", default="", help=BY_KEY["source_negative_prompt"].help)
    parser.add_argument("--save-latents", type=Path, help="also write the source latents (safetensors)")


def add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="two or more checkpoints, or a "
                        "folder of them; rows give the content, columns the style")
    parser.add_argument("--image", type=Path, help="content picture, inverted with each checkpoint (default: each "
                        "checkpoint generates its own)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the grid and the pictures; what is "
                        "there already is not made again")
    parser.add_argument("--prompt", action="append", help="what the picture shows; may be given several times")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="further prompts, one a line")
    parser.add_argument("--seed", "--seeds", dest="seeds", type=seeds, default=[0], metavar="SEED,SEED,...",
                        help="one or several (default: 0)")
    add_sampling(parser)
    add_workers(parser, "1, this very process")


def add_workers(parser: argparse.ArgumentParser, usual: str) -> None:
    parser.add_argument("--workers", type=number("--workers", 1, 4096, whole=True), help="how many processes share the "
                        f"work (default: {usual}; with Ray one a core, or a GPU where there are any)")
    parser.add_argument("--threads", type=number("--threads", 1, 1024, whole=True), default=1, help="torch's in each "
                        "process: a picture's last bits depend on them, not on the workers (default: %(default)s)")
    parser.add_argument("--ray", action="store_true", help="let Ray run the work: on this machine's cores, or on the "
                        "cluster that RAY_ADDRESS names (needs: pip install ray)")
    parser.add_argument("--address", metavar="HOST:PORT", help='the Ray cluster to join ("auto": the one that this '
                        "machine is in); it must find the checkpoints at the same paths")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder for table and plot "
                        "(default: %(default)s)")
    parser.add_argument("--scenes", type=number("--scenes", 1, 120, whole=True), default=100,
                        help="how many held-out scenes (default: %(default)s)")
    parser.add_argument("--steps", type=number("--steps", 3, 999, whole=True), default=10,
                        help="DDIM steps (default: %(default)s)")
    parser.add_argument("--thinning", type=number("--thinning", 1, 120, whole=True), default=3,
                        help="the grid around the main setting takes every n-th scene; 1 is all of them "
                        "(default: %(default)s)")
    parser.add_argument("--rows", help="only the rows whose name contains one of these (comma-separated)")
    add_workers(parser, "on a CPU one a core, at most 8")


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for tables and plot "
                        "(default: %(default)s)")
    parser.add_argument("--rounds", type=number("--rounds", 1, 100, whole=True), default=2,
                        help="how often each kind of step is timed (default: %(default)s)")
    parser.add_argument("--pixels", type=int, choices=[64 * i for i in range(1, 33)], metavar="SIDE",
                        help="side of what is timed, a multiple of 64 (default: 192 on a CPU; 512, SDXL 1024 on a GPU)")
