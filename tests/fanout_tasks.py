"""Tasks without models, in a module that the processes of `test_fanout.py` can import quickly."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from ditail import DitailError


def count(path: Path) -> int:
    """How often this was called with this file."""
    with path.open("a") as file:
        file.write("x")
    return path.stat().st_size


def start() -> dict:
    return {"threads": torch.get_num_threads()}


@dataclass(frozen=True)
class Task:
    """Squares its number. fault: what happens instead in the first `times` runs, counted in the file `counter`."""

    number: int
    fault: str = ""
    counter: Path | None = None
    times: int = 0

    @property
    def name(self) -> str:
        return f"task {self.number}"

    def run(self, state):
        if self.fault == "bad":
            raise DitailError(None, "steps: 0 is too few")
        if self.fault and count(self.counter) <= self.times:
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no luck")
        return self.number**2, state["threads"], torch.get_num_threads()
