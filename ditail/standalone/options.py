"""Command-line options that several commands share."""

import argparse
import math
import sys
from typing import NoReturn

MAX_SEED = 2**32 - 1


class Parser(argparse.ArgumentParser):
    """Prints an error as one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        # argparse puts "argument --x: " before messages that already name the option.
        start, _, sentence = message.partition(": ")
        if start.startswith("argument ") and sentence.startswith("--"):
            message = sentence
        print(f"{self.prog.split()[2]}: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


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


def numbers(key: str, high: int):
    """An argparse type: distinct comma-separated whole numbers from 0 to `high`."""
    parse = number(key, 0, high, whole=True)
    return lambda text: list(dict.fromkeys(parse(part) for part in text.split(",")))


def text(key: str):
    """An argparse type: a text without the stand-ins that Python has for bytes of another encoding."""

    def parse(value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise argparse.ArgumentTypeError(f"{key} has a character that is no valid Unicode, got {value!r}") from None
        return value

    return parse


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=number("--workers", 1, 4096, whole=True), help="number of processes; "
                        "more than one needs Ray (default: 1, this process; with --ray one for each core, or for each "
                        "GPU if there are any)")
    parser.add_argument("--threads", type=number("--threads", 1, 1024, whole=True), default=1, help="torch's threads "
                        "in each process; an image's last bits depend on them, and not on --workers (default: "
                        "%(default)s)")
    parser.add_argument("--ray", action="store_true", help="run on this machine's cores or GPUs with Ray, or on the "
                        "cluster that RAY_ADDRESS names (needs: pip install ray)")
    parser.add_argument("--address", metavar="HOST:PORT", help='the Ray cluster to join ("auto": the one that this '
                        "machine is in); it must find the checkpoints at the same paths")
