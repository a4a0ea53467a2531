"""Real processes of the command line, with the processes that they start."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).parents[1]
SECONDS = 180


class Marked:
    """A process of this tree's code; it and every process that it starts inherit a mark in their environment.

    out, err: files with its output. A pipe would be kept open by the processes that it starts.
    """

    def __init__(self, command, folder: Path, **environment):
        self._mark = f"DITAIL_TEST_MARK={uuid4().hex}"
        name, value = self._mark.split("=")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment, name: value}
        self.out, self.err = folder / f"{value}.out", folder / f"{value}.err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.popen = subprocess.Popen([str(part) for part in command], env=environment, cwd=ROOT, stdout=out,
                                          stderr=err)

    def family(self) -> dict[int, str]:
        """The processes that have the mark and have not ended: id -> command line."""
        folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
        return {int(folder.name): read(folder / "cmdline").replace(b"\0", b" ").decode() for folder in folders
                if self._mark.encode() in read(folder / "environ")}

    def catches(self, number: int) -> bool:
        """Whether it has installed a handler for a signal."""
        lines = read(Path(f"/proc/{self.popen.pid}/status")).decode().splitlines()
        caught = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
        return bool(caught and caught[0] >> (number - 1) & 1)

    def maps(self, library: str) -> bool:
        """Whether it has begun to load a shared library."""
        return library.encode() in read(Path(f"/proc/{self.popen.pid}/maps"))

    def wait_until(self, condition: Callable[[], object], ended: bool = False) -> None:
        """Wait until a condition holds. ended: the process itself may have ended before."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert ended or self.popen.poll() is None, (self.popen.returncode, self.err.read_text()[-3000:])
            assert time.monotonic() < end, f"not within {SECONDS} s; {self.err.read_text()[-3000:]}"
            time.sleep(0.05)

    def interrupt(self) -> None:
        self.popen.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, list[str]]:
        """(exit code, the last line on stderr), once it and all its processes have ended."""
        code = self.popen.wait(SECONDS)
        self.wait_until(lambda: not self.family(), ended=True)
        assert "Traceback" not in self.err.read_text(), self.err.read_text()
        # A progress bar rewrites its line.
        return code, self.err.read_text().replace("\r", "\n").strip().splitlines()[-1:]


def read(path: Path) -> bytes:
    """A file of /proc; empty if its process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
