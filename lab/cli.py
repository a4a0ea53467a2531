"""The command line of the lab: `python -m lab evaluate | bench | gallery | train`."""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from ditail.errors import DitailError
from ditail.standalone.options import Parser, add_workers, number
from ditail.standalone.process import execute

STAGES = {"vae": 10, "base": 66, "style": 5, "decoder": 7, "classifier": 1.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `ditail.standalone.process.execute`."""
    args = build_parser().parse_args(argv)
    return execute("lab", lambda: load_command(args.command), args)


def load_command(name: str) -> Callable[[argparse.Namespace], None]:
    """A command's function. Raises DitailError if a package that it needs is not installed."""
    from ditail.standalone.model import quiet

    quiet()
    try:
        return import_module(f"lab.{name}").command
    except ModuleNotFoundError as error:
        raise DitailError(None, f"{name}: needs the package {error.name}; install it with: pip install -e "
                          f"'.[standalone,{'train' if name == 'train' else 'test'}]'") from error


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m lab", description="Evaluation, benchmark and training of the demo checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_evaluate(commands.add_parser("evaluate", help="measure structure and style on the demo checkpoints"))
    add_bench(commands.add_parser("bench", help="count FLOPs and measure time, relative to plain generation"))
    add_gallery(commands.add_parser("gallery", help="make the images of docs/gallery.md and docs/tuning.md by their "
                                    "commands"))
    add_train(commands.add_parser("train", help="remake the demo checkpoints from scratch (needs npm)"))
    return parser


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder for table and plot "
                        "(default: %(default)s)")
    parser.add_argument("--scenes", type=number("--scenes", 1, 100, whole=True), default=100,
                        help="number of held-out scenes (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="a Markdown page in which the tables after the marks "
                        "<!-- name --> are replaced")
    parser.add_argument("--rows", help="only rows whose names begin with one of these (comma-separated), in that order")
    add_workers(parser)


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for tables and plot "
                        "(default: %(default)s)")
    parser.add_argument("--rounds", type=number("--rounds", 1, 100, whole=True), default=2,
                        help="number of times that each kind of step is timed (default: %(default)s)")
    parser.add_argument("--pixels", type=int, choices=[64 * i for i in range(1, 33)], metavar="SIDE",
                        help="side of the images that are timed, a multiple of 64 (default: 192 on a CPU; 512, "
                        "SDXL 1024 on a GPU)")


def add_gallery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/gallery"), help="working folder: the demo checkpoints, "
                        "content images and what the commands make (default: %(default)s)")
    parser.add_argument("--only", help="names of the images to make, without .png (comma-separated; default: all)")


def add_train(parser: argparse.ArgumentParser) -> None:
    from ditail.standalone import names

    parser.add_argument("--build", type=Path, default=Path("build/train"), help="working folder (default: %(default)s)")
    parser.add_argument("--assets", type=Path, default=names.ASSETS, help="where the result goes "
                        "(default: the project's own assets)")
    for stage, minutes in STAGES.items():
        parser.add_argument(f"--minutes-{stage}", type=number(f"--minutes-{stage}", 0.01, 10_000), default=minutes,
                            help="training time (default: %(default)s)")
