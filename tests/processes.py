"""Real processes of the command line, with all that they start."""

import os
import subprocess
import time
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).parents[1]
SECONDS = 120


class Marked:
    """A process of this tree's code; it and every process that it starts inherit a mark in their environment."""

    def __init__(self, command, **environment):
        self._mark = f"DITAIL_TEST_MARK={uuid4().hex}"
        name, value = self._mark.split("=")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment, name: value}
        self.popen = subprocess.Popen([str(part) for part in command], env=environment, cwd=ROOT, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def family(self) -> list[int]:
        """The ids of the processes that have the mark and are not zombies."""
        return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()
                and self._mark.encode() in read(folder / "environ")]

    def wait_until(self, condition, ended: bool = False) -> None:
        """Until something is so; `ended`: also after the process itself has ended."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert ended or self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < end, f"not within {SECONDS} s"
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr), once it has ended."""
        out, error = self.popen.communicate(timeout=SECONDS)
        return self.popen.returncode, out, error


def read(path: Path) -> bytes:
    """A file of /proc, empty where its process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
