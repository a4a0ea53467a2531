"""Tasks run in this process, or by Ray in processes of this machine or a cluster, with the same results bit for bit.

A task is a picklable object with a `name` of its own and `run(state)`; `state` is what `start()` built once in the
process that runs it (loaded models, say). Results come back to the caller, who alone writes files.
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
SHOWN = 5
# glibc hands large tensors back to the system at every step unless told otherwise; it reads this at start.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**28)}


class Task(Protocol):
    """See the module's first lines."""

    @property
    def name(self) -> str: ...

    def run(self, state: Any) -> Any: ...


AnyTask = TypeVar("AnyTask", bound=Task)


class TasksFailed(DitailError):
    """Some tasks failed for good; the others are done."""

    exit_code = 1


class Outcome(NamedTuple):
    """What one try gave: a result, or the reason why there is none. A final failure is not tried again."""

    result: Any = None
    failure: str | None = None
    final: bool = False


class ThisProcess:
    """Runs one task at a time, when its outcome is waited for. failed: task name -> reason, of what failed for good."""

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
            # A sentence for the user says what is wrong with the input; another try would say it again.
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
            last = str(error).strip().splitlines()[-1:]
            return ready, Outcome(failure=": ".join([type(error).__name__, *last]))


Workers = ThisProcess | RayCluster
_on_ray: dict[str, ThisProcess] = {}


def _run_on_ray(key: str, start: Callable[[], Any], threads: int, task: Task) -> Outcome:
    """In a process of Ray's, which serves many tasks: the models that they load stay loaded from one to the next."""
    if key not in _on_ray:
        _on_ray.clear()
        _on_ray[key] = ThisProcess(start)
    with fixed_arithmetic(threads):
        return _on_ray[key].run(task)


@contextmanager
def fixed_arithmetic(threads: int) -> Iterator[None]:
    """The same sums wherever a task runs: in their last bits they depend on the number of torch's threads."""
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

    workers: how many; None for one, or for all of a Ray cluster. Raises DitailError where Ray is needed and missing.
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
        """Of the command line's arguments; see `options.add_workers`."""
        return cls(args.workers, args.threads, args.ray, args.address)

    @property
    def uses_ray(self) -> bool:
        return self.ray or bool(self.address) or (self.workers or 1) > 1

    @property
    def asking(self) -> str:
        """The option that asks for Ray."""
        return "address" if self.address else "ray" if self.ray else "workers"

    def import_ray(self):
        try:
            import ray
        except ImportError as error:
            raise DitailError(f"--{self.asking}", f"needs Ray, which can't be imported ({error}); install it with: "
                              "pip install ray") from error
        return ray

    @contextmanager
    def open(self, start: Callable[[], Any], tasks: int) -> Iterator[Workers]:
        """What `fan_out` runs up to `tasks` tasks on at a time."""
        if self.uses_ray:
            with joined_ray(self, tasks):
                yield RayCluster(self.workers, start, self.threads)
        else:
            with fixed_arithmetic(self.threads):
                yield ThisProcess(start)


@contextmanager
def joined_ray(options: Options, tasks: int) -> Iterator[None]:
    """In the cluster at the options' address or $RAY_ADDRESS, else in one of this machine's cores, until the end.

    Neither environment variables nor signal handlers of Ray's are left behind.
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
        with _kept_sigterm():
            try:
                check_reachable(address)
                ray.init(address, **resources, log_to_driver=False, logging_level=logging.ERROR,
                         runtime_env={"env_vars": MALLOC})
            except (OSError, ValueError, RuntimeError) as error:
                raise DitailError(f"--{options.asking}", f"can't join Ray at {address!r} ({error})") from error
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Ray's own answer to SIGTERM is an abort with a stack trace."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def check_reachable(address: str) -> None:
    """Raise OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def count_cores() -> int:
    """The cores that this process may use (where the system can say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fan_out(tasks: Iterable[AnyTask], workers: Workers) -> Iterator[tuple[AnyTask, Any]]:
    """(task, result) of each task as it ends, in no certain order; tasks are drawn as workers become free.

    One that failed `TRIES` times, or for what another try would not change, is put into `workers.failed`.
    """
    fresh, tries = iter(tasks), Counter[str]()
    again: list[AnyTask] = []
    busy: dict[Any, AnyTask] = {}
    while True:
        while len(busy) < workers.size and (task := again.pop() if again else next(fresh, None)):
            busy[workers.submit(task)] = task
        if not busy:
            return
        handle, outcome = workers.wait(list(busy))
        task = busy.pop(handle)
        if outcome.failure is None:
            yield task, outcome.result
            continue
        tries[task.name] += 1
        if outcome.final or tries[task.name] == TRIES:
            workers.failed[task.name] = outcome.failure
        else:
            logger.warning("%s failed, try %d of %d: %s", task.name, tries[task.name], TRIES, outcome.failure)
            again.append(task)


def raise_failed(failed: dict[str, str]) -> None:
    """Raise TasksFailed naming what failed and why, if anything did."""
    if not failed:
        return
    shown = [f"{name} ({reason})" for name, reason in failed.items()][:SHOWN]
    more = [f"{len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    raise TasksFailed(None, f"failed: {'; '.join(shown + more)}; the rest is kept, and the same command makes what is "
                      "missing")
