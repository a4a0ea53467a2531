"""The command line: `python -m ditail demo | mix | matrix`."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ..content.presets import PRESETS
from ..content.settings import BY_KEY
from .names import SAMPLERS
from .options import MAX_SEED, Parser, add_workers, number, numbers, text
from .process import execute


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `process.execute`."""
    args = build_parser().parse_args(argv)

    def load():
        # Imported only once the arguments are checked: transformers and diffusers take seconds to load.
        return import_module(f".{args.command}", __package__).command

    return execute("ditail", load, args)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ditail", description="Diffusion Cocktail: the content of one diffusion model's "
                    "image, or of a photo, in another model's style.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_demo(commands.add_parser("demo", help="mix the demo checkpoints that ship with the project"))
    add_mix(commands.add_parser("mix", help="one image's content in one checkpoint's style"))
    add_matrix(commands.add_parser("matrix", help="m checkpoints give m x m images"))
    return parser


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the PNGs (default: %(default)s)")
    parser.add_argument("--scene", "--scenes", dest="scenes", type=numbers("--scene", 119), default=[18, 44],
                        metavar="SCENE,SCENE,...", help="which of the 120 held-out scenes, from 0 on, are the content "
                        "images (default: 18,44)")
    parser.add_argument("--style", choices=("noto", "flat", "ink"), default="noto",
                        help="the content image's style (default: %(default)s)")
    parser.add_argument("--seed", type=number("--seed", 0, MAX_SEED, whole=True), default=1,
                        help="(default: %(default)s)")
    parser.add_argument("--webui", type=Path, metavar="DIR",
                        help="instead: copy the demo checkpoints into the models folder of this WebUI (or of its "
                        "--data-dir)")


def add_settings(parser: argparse.ArgumentParser, *keys: str) -> None:
    """Add an option for each of these settings. The default is None, so that a preset's value is used."""
    for field in (BY_KEY[key] for key in keys):
        option = f"--{field.key.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true", default=None, help=field.help)
            continue
        kind = number(option, field.low, field.high) if isinstance(field.default, float) else str
        default = "" if field.default == "" else f" (default: {field.default})"
        parser.add_argument(option, type=kind, choices=field.choices, help=f"{field.help}{default}")


def add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", "--seeds", dest="seeds", type=numbers("--seed", MAX_SEED), default=[0],
                        metavar="SEED,SEED,...", help="one or several (default: 0)")


def add_sampling(parser: argparse.ArgumentParser, cache: str) -> None:
    """Add the options of the sampling and Ditail's settings. cache: for the help, where source latents are kept."""
    parser.add_argument("--negative-prompt", type=text("--negative-prompt"), default="",
                        help='(default: "%(default)s")')
    parser.add_argument("--steps", type=number("--steps", 1, 999, whole=True), default=20,
                        help="(default: %(default)s)")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default="DDIM", help="(default: %(default)s)")
    parser.add_argument("--cfg", type=number("--cfg", 1, 30), default=7.5, help="CFG scale, the paper's omega "
                        "(default: %(default)s)")
    parser.add_argument("--width", type=number("--width", 8, 8192, whole=True), help="pixels (default: the image's, "
                        "rounded down to what the model can make; without an image the model's own)")
    parser.add_argument("--height", type=number("--height", 8, 8192, whole=True), help="as --width")
    parser.add_argument("--preset", choices=tuple(PRESETS), help=f"{BY_KEY['preset'].help} (default: Paper)")
    add_settings(parser, "alpha", "beta", "conv_ratio", "attn_ratio", "inject", "guidance_until", "source_latents",
                 "inversion_steps", "contours", "tone", "colours", "start", "layers", "resize_mode")
    parser.add_argument("--mask", type=Path, help="image of the same proportions, white = take the content")
    parser.add_argument("--source-prompt", help="what the content image shows, for the inversion (default: --prompt)")
    parser.add_argument("--source-negative-prompt", help="for the inversion (default: --negative-prompt)")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="a JSON file with further settings as the API "
                        "takes them (sources, collage, ...); images may be paths")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep source latents in this folder and use those "
                        f"that are there (default: {cache})")


def add_mix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, required=True, help="checkpoint that supplies the content "
                        "(.safetensors with its .yaml beside it)")
    parser.add_argument("--target", type=Path, required=True, help="checkpoint that supplies the style")
    content = parser.add_mutually_exclusive_group()
    content.add_argument("--image", type=Path, help="the content image, or a folder of them; NAME.txt beside an image "
                         "is its prompt; not needed if --settings has an image or a collage")
    content.add_argument("--generate", action="store_true", help="let the source checkpoint generate the content")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write, or for a folder of images a folder; "
                        "missing folders are created")
    parser.add_argument("--prompt", type=text("--prompt"), help="what the image shows")
    add_seeds(parser)
    parser.add_argument("--batch-size", type=number("--batch-size", 1, 64, whole=True), default=1,
                        help="number of seeds that are sampled at once (default: %(default)s)")
    add_sampling(parser, cache="nowhere")
    add_settings(parser, "show_source")
    parser.add_argument("--save-latents", type=Path, help="also write the source latents (safetensors) of one "
                        "content image")


def add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="two or more checkpoints, or a "
                        "folder of them; rows give the content, columns the style")
    parser.add_argument("--image", type=Path, help="content image, inverted with each checkpoint (default: each "
                        "checkpoint generates its own)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the grid and the images; what is there "
                        "already is not made again")
    parser.add_argument("--prompt", type=text("--prompt"), action="append", help="what the image shows; may be given "
                        "several times")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="further prompts, one a line")
    add_seeds(parser)
    add_sampling(parser, cache=".latents in --out")
    add_workers(parser)
