"""Progress bars of the source pass and the sampling on a terminal (see `job.host.Progress`)."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from tqdm import tqdm


@contextmanager
def step_bar(description: str, steps: int, calls: int) -> Iterator[Callable[[], object]]:
    """A progress bar of `steps` steps. Yields a function that is called `calls` times, whatever the number of steps."""
    done = itertools.count(1)
    with tqdm(total=steps, desc=description, unit="step") as bar:
        yield lambda: bar.update(next(done) * steps // calls - bar.n)


class NoBar:
    """Shows nothing, for commands that have one bar for many jobs."""

    def show(self, text: str) -> None:
        pass

    def begin(self, steps: int, text: str) -> None:
        pass

    def step(self, *_) -> None:
        pass

    def check(self) -> None:
        pass

    def end(self) -> None:
        pass

    def sampling(self, calls: int) -> AbstractContextManager[Callable[[], object]]:
        """A context that yields the function to call after each of the sampling's `calls` of the U-Net."""
        return nullcontext(self.step)


class StepBars(NoBar):
    """One bar for each batch of sources and for each sampling. steps: of the job's sampler."""

    def __init__(self, steps: int):
        self._steps = steps
        self._bar = ExitStack()
        self._update: Callable[[], object] = self.check

    def begin(self, steps: int, text: str) -> None:
        self.end()
        self._update = self._bar.enter_context(step_bar(text, self._steps, steps))

    def step(self, *_) -> None:
        self._update()

    def end(self) -> None:
        self._bar.close()

    def sampling(self, calls: int) -> AbstractContextManager[Callable[[], object]]:
        return step_bar("sampling", self._steps, calls)
