"""Running tasks in this process, or by Ray in processes of this machine or a cluster, with bit-identical results.

A task is a picklable object with a unique `name` and `run(state)`; `state` is what `start()` returned in the process
that runs it (loaded models, say). Results are returned to the caller, and only the caller writes files.
"""

import logging
import os
import signal
import socket
import threading
import uuid
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from ..errors import DitailError

logger = logging.getLogger("ditail")
TRIES = 3
MAX_LISTED = 5
# Without these, glibc returns the memory of large tensors to the system at every step. It reads them at start.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**28)}


class Task(Protocol):
    """A task, as the module's docstring describes."""

    @property
    def name(self) -> str: ...

    def run(self, state: Any) -> Any: ...


AnyTask = TypeVar("AnyTask", bound=Task)


class TasksFailed(DitailError):
    """Some tasks failed finally; the others are done."""

    exit_code = 1


class Outcome(NamedTuple):
    """The outcome of one try: a result, or a failure's message. A final failure is not tried again."""

    result: Any = None
    failure: str | None = None
    final: bool = False


class ThisProcess:
    """Runs one task at a time, in `wait`. failed: task name -> message of each final failure."""

    size = 1

    def __init__(self, start: Callable[[], Any]):
        self.failed: dict[str, str] = {}
        self._start = start
        self._states: list[Any] = []

    def submit(self, task: Task) -> Callable[[], Outcome]:
        return partial(self.run, task)

    def wait(self, handles: Sequence[Callable[[], Outcome]]) -> tuple[Callable[[], Outcome], Outcome]:
        """(the handle of a task that has ended, its outcome)."""
        return handles[0], handles[0]()

    def run(self, task: Task) -> Outcome:
        try:
            if not self._states:
                self._states.append(self._start())
            return Outcome(task.run(self._states[0]))
        except DitailError as error:
            # The input is wrong, so another try would fail, too.
            return Outcome(failure=str(error), final=True)
        except Exception as error:
            logger.debug("%s failed", task.name, exc_info=True)
            return Outcome(failure=f"{type(error).__name__}: {error}")


class RayCluster:
    """Runs `size` tasks at a time on the Ray cluster that this process has joined, each with a GPU if there are any."""

    def __init__(self, size: int | None, start: Callable[[], Any], threads: int):
        import ray

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if threads > max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]):
            raise DitailError("--threads", f"no machine of the Ray cluster has {threads} cores")
        self.failed: dict[str, str] = {}
        self.size = size or gpus or max(1, int(resources.get("CPU", 1) // threads))
        self._ray, self._arguments = ray, (uuid.uuid4().hex, ray.put(start), threads)
        self._remote = ray.remote(num_cpus=threads, num_gpus=min(gpus, 1), max_retries=0)(_run_on_ray)

    def submit(self, task: Task) -> Any:
        return self._remote.remote(*self._arguments, task)

    def wait(self, handles: Sequence[Any]) -> tuple[Any, Outcome]:
        (ready,), _ = self._ray.wait(list(handles))
        try:
            return ready, self._ray.get(ready)
        except self._ray.exceptions.WorkerCrashedError:
            return ready, Outcome(failure="its worker process was killed or crashed")
        except self._ray.exceptions.RayError as error:
            last_line = str(error).strip().splitlines()[-1:]
            return ready, Outcome(failure=": ".join([type(error).__name__, *last_line]))


Workers = ThisProcess | RayCluster
_on_ray: dict[str, ThisProcess] = {}


def _run_on_ray(key: str, start: Callable[[], Any], threads: int, task: Task) -> Outcome:
    """Run a task in a Ray process. The process runs many tasks, so the state, with its models, is kept between them."""
    if key not in _on_ray:
        _on_ray.clear()
        _on_ray[key] = ThisProcess(start)
    with fixed_arithmetic(threads):
        return _on_ray[key].run(task)


@contextmanager
def fixed_arithmetic(threads: int) -> Iterator[None]:
    """A context with fixed torch threads, on which the last bits of results depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


@dataclass(frozen=True)
class Options:
    """How tasks are run: with more than one of `workers`, `ray` or an `address` by Ray, else in this process.

    workers: the number; None for one, or with Ray as many as fit. Raises DitailError if Ray is needed and missing.
    """

    workers: int | None = None
    threads: int = 1
    ray: bool = False
    address: str | None = None

    def __post_init__(self):
        if self.uses_ray:
            self.import_ray()

    @classmethod
    def of(cls, args: Namespace) -> "Options":
        """The options in a command's arguments (see `options.add_workers`)."""
        return cls(args.workers, args.threads, args.ray, args.address)

    @property
    def uses_ray(self) -> bool:
        return self.ray or bool(self.address) or (self.workers or 1) > 1

    @property
    def ray_option(self) -> str:
        """The option that needs Ray."""
        return "address" if self.address else "ray" if self.ray else "workers"

    def import_ray(self):
        try:
            import ray
        except ImportError as error:
            raise DitailError(f"--{self.ray_option}", f"needs Ray, which can't be imported ({error}); install it with: "
                              "pip install ray") from error
        return ray

    @contextmanager
    def open(self, start: Callable[[], Any], tasks: int) -> Iterator[Workers]:
        """A context with the workers for `fan_out`. tasks: their number, at most which many run at a time."""
        if self.uses_ray:
            with joined_ray(self, tasks):
                yield RayCluster(self.workers, start, self.threads)
        else:
            with fixed_arithmetic(self.threads):
                yield ThisProcess(start)


@contextmanager
def joined_ray(options: Options, tasks: int) -> Iterator[None]:
    """A context connected to the Ray cluster of the options or $RAY_ADDRESS, else to a new one on this machine's cores.

    Environment variables and signal handlers are restored afterwards.
    """
    ray = options.import_ray()
    address = options.address or (options.ray and os.environ.get("RAY_ADDRESS")) or "local"
    resources: dict[str, Any] = {}
    if address == "local":
        workers = min(tasks, options.workers or max(1, count_cores() // options.threads))
        resources = {"num_cpus": workers * options.threads, "include_dashboard": False}
    environment = dict(os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _restored_sigterm():
            try:
                check_reachable(address)
                ray.init(address, **resources, log_to_driver=False, logging_level=logging.ERROR,
                         runtime_env={"env_vars": MALLOC})
            except (OSError, ValueError, RuntimeError) as error:
                raise DitailError(f"--{options.ray_option}", f"can't join Ray at {address!r} ({error})") from error
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def _restored_sigterm() -> Iterator[None]:
    """A context that restores the handler of SIGTERM: Ray's aborts with a stack trace."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at `host:port`: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def count_cores() -> int:
    """The number of cores that this process may use; of all cores if the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fan_out(tasks: Iterable[AnyTask], workers: Workers) -> Iterator[tuple[AnyTask, Any]]:
    """Yield (task, result) as each task ends, in any order. Tasks are taken from `tasks` as workers become free.

    A task that failed TRIES times, or finally, is put into `workers.failed`.
    """
    untried, tries = iter(tasks), Counter[str]()
    to_retry: list[AnyTask] = []
    running: dict[Any, AnyTask] = {}
    while True:
        while len(running) < workers.size and (task := to_retry.pop() if to_retry else next(untried, None)):
            running[workers.submit(task)] = task
        if not running:
            return
        handle, outcome = workers.wait(list(running))
        task = running.pop(handle)
        if outcome.failure is None:
            yield task, outcome.result
            continue
        tries[task.name] += 1
        if outcome.final or tries[task.name] == TRIES:
            workers.failed[task.name] = outcome.failure
        else:
            logger.warning("%s failed, try %d of %d: %s", task.name, tries[task.name], TRIES, outcome.failure)
            to_retry.append(task)


def raise_failed(failed: dict[str, str]) -> None:
    """Raise TasksFailed naming the failed tasks and their messages, if there are any."""
    if not failed:
        return
    listed = [f"{name} ({reason})" for name, reason in failed.items()][:MAX_LISTED]
    more = [f"{len(failed) - MAX_LISTED} more"] if len(failed) > MAX_LISTED else []
    raise TasksFailed(None, f"failed: {'; '.join(listed + more)}; the rest is kept, and the same command makes what is "
                      "missing")
