"""The source pass in the WebUI's progress bar, live preview and console."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from modules import sd_samplers_common, shared
from torch import Tensor

from ..job.host import Interrupted

# Attribute of a job that is one of several: its place, such as "4 of 9".
PLACE = "_ditail_place"


def text_of(p, text: str) -> str:
    """The progress bar's text: "Ditail, 4 of 9: inverting the content image"."""
    place = getattr(p, PLACE, "")
    return f"Ditail, {place}: {text}" if place else f"Ditail: {text}"


@contextmanager
def sampling_text(p) -> Iterator[None]:
    """A context with the progress bar's text for the sampling of job `p`."""
    before = shared.state.textinfo
    shared.state.textinfo = text_of(p, f"sampling with {shared.sd_model.sd_checkpoint_info.name_for_extra}")
    try:
        yield
    finally:
        shared.state.textinfo = before


class WebuiProgress:
    """See `job.host.Progress`: raises Interrupted once the user has pressed Interrupt or Skip."""

    def __init__(self, p):
        self.p = p

    def show(self, text: str) -> None:
        shared.state.textinfo = text_of(self.p, text)

    def begin(self, steps: int, text: str) -> None:
        self.show(text)
        shared.state.job = text_of(self.p, text)
        shared.state.sampling_steps, shared.state.sampling_step = steps, 0
        self.check()

    def step(self, index: int, z: Tensor) -> None:
        shared.state.sampling_step = index + 1
        sd_samplers_common.store_latent(z)
        shared.total_tqdm.update()
        self.check()

    def end(self) -> None:
        shared.state.nextjob()

    def check(self) -> None:
        state = shared.state
        if state.interrupted or state.skipped or state.stopping_generation:
            raise Interrupted


@contextmanager
def source_job(p, target_steps: list[int], source_steps: list[int]) -> Iterator[WebuiProgress]:
    """A context that adds the source pass to the job's total progress, and restores the progress texts afterwards.

    target_steps: of each sampling of the job. source_steps: of each batch of sources.
    """
    state = copy.copy(shared.state.__dict__)
    if shared.state.job_count == -1:
        shared.state.job_count = p.n_iter
    shared.state.job_count += len(source_steps)
    bar = getattr(shared.total_tqdm, "_tqdm", None)
    total = bar.total if bar is not None else p.n_iter * sum(target_steps)
    shared.total_tqdm.updateTotal(total + sum(source_steps))
    try:
        yield WebuiProgress(p)
    finally:
        for name in ("job", "textinfo", "sampling_steps"):
            setattr(shared.state, name, state.get(name, getattr(type(shared.state), name)))
