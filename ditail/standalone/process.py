"""A command as a process: signals, exit codes, and one sentence on stderr for any error.

Imports only small modules of the standard library, as signals are handled before torch starts to load.
"""

import _thread
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from argparse import Namespace

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# If a second signal comes this long after the first one, cleaning up hangs.
CLEANING_SECONDS = 15
AGAIN_SECONDS = 0.05


class Interrupts:
    """Handles SIGINT and SIGTERM of one process.

    While modules are loaded, the process ends at once: there is nothing to clean up, and an exception would be raised
    inside a C library's initialisation. Later, KeyboardInterrupt is raised once; further signals don't disturb cleaning
    up.
    """

    def __init__(self, program: str):
        self.program = program
        self.cleans_up = False
        self.received: int | None = None
        self._since = 0.0

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._handle)
        sys.unraisablehook = self._handle_unraisable
        threading.excepthook = self._handle_in_thread

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        first, now = self.received is None, time.monotonic()
        if not self.cleans_up or (not first and now - self._since > CLEANING_SECONDS):
            os.write(2, f"{self.program}: interrupted\n".encode())
            os._exit(128 + number)
        if first:
            self.received, self._since = number, now
            raise KeyboardInterrupt

    def _handle_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """KeyboardInterrupt in a destructor is only printed, so another one is raised soon after it.

        Other errors are not printed after an interrupt, which leaves modules and objects half initialised.
        """
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(self._interrupt_again, ())
        elif self.received is None:
            sys.__unraisablehook__(unraisable)

    def _handle_in_thread(self, error: threading.ExceptHookArgs) -> None:
        """A library's threads may fail once the main thread has cleaned up after an interrupt."""
        if self.received is None:
            threading.__excepthook__(error)

    def _interrupt_again(self) -> None:
        time.sleep(AGAIN_SECONDS)
        self.received = None
        _thread.interrupt_main()

    def ignore(self) -> None:
        """Ignore signals, from the last line of output on."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


# Of this process; not installed if `main` is called as a function.
interrupts = Interrupts("ditail")


def run(program: str, module: str) -> NoReturn:
    """Run `module.main()` as this process and exit with what it returns."""
    interrupts.program = program
    interrupts.install()
    escape_unprintable()
    try:
        code = import_module(module).main()
    except KeyboardInterrupt:
        code = print_interrupted(program)
    interrupts.ignore()
    sys.exit(code)


def escape_unprintable() -> None:
    """Let stdout and stderr print what their encoding lacks (in a path, say) as escapes instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(program: str, sentence: str) -> None:
    print(f"{program}: {' '.join(sentence.split())}", file=sys.stderr)


def print_interrupted(program: str) -> int:
    """Print the error, and return the exit code of a process that a signal ended."""
    print_error(program, "interrupted")
    return 128 + (interrupts.received or signal.SIGINT)


def execute(program: str, load: "Callable[[], Callable[[Namespace], None]]", args: "Namespace") -> int:
    """Run the command that `load` imports. Returns the exit code; an error is printed as one sentence on stderr.

    0: success, 1: a failure, 2: wrong input or a file that can't be written, 130: interrupted.
    """
    from ..errors import DitailError

    try:
        command = load()
        interrupts.cleans_up = True
        command(args)
    except KeyboardInterrupt:
        return print_interrupted(program)
    except Exception as error:
        if interrupts.received is not None:  # a library turned the interrupt into another exception
            return print_interrupted(program)
        if isinstance(error, DitailError):
            print_error(program, str(error))
            return getattr(error, "exit_code", 2)
        if isinstance(error, OSError):
            print_error(program, describe(error))
            return 2
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            print_error(program, "there is not enough memory for this; ask for a smaller --width and --height")
            return 1
        raise
    return 0


def describe(error: OSError) -> str:
    """"file: the system's message"."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
