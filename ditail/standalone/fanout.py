"""Tasks run in this process, in processes of this machine or on Ray, with the same results bit for bit.

A task is a picklable object with a `name` of its own and `run(state)`; `state` is what `start()` built once in the
process that runs it (loaded models, say). Results come back to the caller, who alone writes files.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection
from typing import Any, Protocol

import torch

from ..errors import DitailError

logger = logging.getLogger("ditail")
TRIES = 3
SHOWN = 5
# glibc hands large tensors back to the system at every step unless told otherwise; it reads this at start.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**28)}


class Task(Protocol):
    """See the module's first lines."""
    name: str

    def run(self, state: Any) -> Any: ...


class TasksFailed(DitailError):
    """Some tasks failed for good; the others are done."""


@dataclass(frozen=True)
class Failure:
    """Why a try gave no result; a final one is not tried again."""

    reason: str
    final: bool = False


class Runner:
    """What a process runs its tasks with: the state, built when the first one comes."""

    def __init__(self, start: Callable[[], Any]):
        self._start = start

    @cached_property
    def _state(self) -> Any:
        return self._start()

    def run(self, task: Task) -> tuple[Any, Failure | None]:
        """(result, None), or (None, why there is none)."""
        try:
            return task.run(self._state), None
        except DitailError as error:
            # A sentence for the user says what is wrong with the input; another try would say it again.
            return None, Failure(str(error), final=True)
        except Exception as error:
            logger.debug("%s failed", task.name, exc_info=True)
            return None, Failure(f"{type(error).__name__}: {error}")


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


class InThisProcess:
    """One task at a time, here."""

    size = 1

    def __init__(self, start: Callable[[], Any]):
        self.busy, self.failed, self._runner = [], {}, Runner(start)

    def give(self, task: Task) -> None:
        self.busy.append(task)

    def take(self) -> Iterator[tuple[Task, Any, Failure | None]]:
        task = self.busy.pop()
        yield task, *self._runner.run(task)


class LocalProcesses:
    """Processes of this machine, one task at a time each; one that dies is replaced."""

    def __init__(self, size: int, start: Callable[[], Any], threads: int):
        self.size, self.busy, self.failed = size, {}, {}
        self._arguments, self._processes = (start, threads), {}
        self._idle = [self._spawn() for _ in range(size)]

    def _spawn(self) -> connection.Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        self._processes[ours] = process
        return ours

    def give(self, task: Task) -> None:
        pipe = self._idle.pop()
        self.busy[pipe] = task
        # If the process is dead, `take` finds its pipe at an end.
        with suppress(OSError):
            # Not `send`, which torch makes hand tensors over in shared memory: that ends with its process.
            pipe.send_bytes(pickle.dumps(task))

    def take(self) -> Iterator[tuple[Task, Any, Failure | None]]:
        for pipe in connection.wait(list(self.busy)):
            task = self.busy.pop(pipe)
            try:
                result, failure = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                process = self._processes.pop(pipe)
                process.join()
                pipe, result = self._spawn(), None
                failure = Failure(f"its process ended with exit code {process.exitcode}")
            self._idle.append(pipe)
            yield task, result, failure

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join()


def _serve(pipe: connection.Connection, start: Callable[[], Any], threads: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runner = Runner(start)
    with fixed_arithmetic(threads), suppress(EOFError):
        while True:
            pipe.send_bytes(pickle.dumps(runner.run(pickle.loads(pipe.recv_bytes()))))


def _end_with_parent() -> None:
    """A parent that is killed can't end its processes: they see to it themselves, also in the middle of a task."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class OnRay:
    """Tasks of a Ray cluster that this process has joined, each with a GPU where the cluster has any."""

    def __init__(self, size: int | None, start: Callable[[], Any], threads: int):
        import ray

        self._ray, self.busy, self.failed = ray, {}, {}
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if threads > max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]):
            raise DitailError("--threads", f"no machine of the Ray cluster has {threads} cores")
        self.size = size or gpus or max(1, int(resources.get("CPU", 1) // threads))
        task = ray.remote(num_cpus=threads, num_gpus=min(gpus, 1), max_retries=0)(_run_on_ray)
        arguments = uuid.uuid4().hex, ray.put(start), threads
        self._submit = lambda given: task.remote(*arguments, given)

    def give(self, task: Task) -> None:
        self.busy[self._submit(task)] = task

    def take(self) -> Iterator[tuple[Task, Any, Failure | None]]:
        ready, _ = self._ray.wait(list(self.busy))
        for reference in ready:
            task = self.busy.pop(reference)
            try:
                result, failure = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                last = str(error).strip().splitlines()[-1:]
                result, failure = None, Failure(": ".join([type(error).__name__, *last]))
            yield task, result, failure

    def close(self) -> None:
        for reference in self.busy:
            self._ray.cancel(reference, force=True)


Workers = InThisProcess | LocalProcesses | OnRay
_runners: dict[str, Runner] = {}


def _run_on_ray(key: str, start: Callable[[], Any], threads: int, task: Task) -> tuple[Any, Failure | None]:
    """In a process of Ray's, which serves many tasks: the models that they load stay loaded from one to the next."""
    if key not in _runners:
        _runners.clear()
        _runners[key] = Runner(start)
    with fixed_arithmetic(threads):
        return _runners[key].run(task)


@dataclass(frozen=True)
class Options:
    """How tasks are run. workers: None for the command's own number, or all of a Ray cluster."""

    workers: int | None = None
    threads: int = 1
    ray: bool = False
    address: str | None = None

    def __post_init__(self):
        if self.ray:
            import_ray()

    @contextmanager
    def open(self, start: Callable[[], Any], tasks: int, usual: int) -> Iterator[Workers]:
        """What `fan_out` runs up to `tasks` tasks on. usual: how many processes unless `workers` says."""
        size = min(self.workers or usual, tasks)
        if self.ray:
            with joined_ray(self), _closed(OnRay(self.workers, start, self.threads)) as workers:
                yield workers
        elif size > 1:
            with _environment(MALLOC), _closed(LocalProcesses(size, start, self.threads)) as workers:
                yield workers
        else:
            with fixed_arithmetic(self.threads):
                yield InThisProcess(start)


@contextmanager
def _closed(workers: LocalProcesses | OnRay) -> Iterator[LocalProcesses | OnRay]:
    try:
        yield workers
    finally:
        workers.close()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for new processes, where the user has not set them. Nothing is left, nor what Ray adds."""
    before = set(os.environ)
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]


def import_ray():
    """The module. Raises DitailError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise DitailError("--ray", f"Ray can't be imported ({error}); pip install ray") from error
    return ray


@contextmanager
def joined_ray(options: Options) -> Iterator[None]:
    """In the cluster at the options' address or $RAY_ADDRESS, else in one of this machine's cores, until the end.

    A process that is in a cluster already stays in it.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    own = {}
    if address == "local":
        workers = options.workers or max(1, count_cores() // options.threads)
        own = {"num_cpus": workers * options.threads, "include_dashboard": False}
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"}):
        try:
            check_reachable(address)
            ray.init(address, **own, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": MALLOC})
        except (OSError, ValueError, RuntimeError) as error:
            raise DitailError("--address", f"can't join Ray at {address!r} ({error})") from error
        try:
            with _interruptible():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM interrupts, as Ctrl-C does: what Ray makes of it is an abort with a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def check_reachable(address: str) -> None:
    """Raise OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def count_cores() -> int:
    """The cores that this process may use (where the system can say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fan_out(tasks: Iterable[Task], workers: Workers) -> Iterator[tuple[Task, Any]]:
    """(task, result) of each task as it ends, in no certain order; tasks are drawn as workers become free.

    One that failed `TRIES` times, or for what another try would not change, is put into `workers.failed`.
    """
    fresh, again, tries = iter(tasks), [], Counter()
    while True:
        while len(workers.busy) < workers.size and (task := again.pop() if again else next(fresh, None)):
            workers.give(task)
        if not workers.busy:
            return
        for task, result, failure in workers.take():
            if failure is None:
                yield task, result
                continue
            tries[task.name] += 1
            if failure.final or tries[task.name] == TRIES:
                workers.failed[task.name] = failure.reason
            else:
                logger.warning("%s failed, try %d of %d: %s", task.name, tries[task.name], TRIES, failure.reason)
                again.append(task)


def raise_failed(failed: dict[str, str]) -> None:
    """Raise TasksFailed naming what failed and why, if anything did."""
    if not failed:
        return
    shown = [f"{name} ({reason})" for name, reason in failed.items()][:SHOWN]
    more = [f"{len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    raise TasksFailed(f"failed: {'; '.join(shown + more)}; the rest is kept, and the same command makes what is "
                      "missing")
