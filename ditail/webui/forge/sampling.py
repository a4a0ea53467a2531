"""The plan of a Forge sampler's sampling."""

from collections.abc import Iterator
from contextlib import contextmanager

from backend.modules.k_prediction import rescale_zero_terminal_snr_sigmas
from modules import sd_samplers_kdiffusion, sd_samplers_timesteps, shared

from ...job.host import SamplingPlan
from ..sampling import WebuiJob

SAMPLERS = (sd_samplers_kdiffusion, sd_samplers_timesteps)
PREPARING = ("sampling_prepare", "sampling_cleanup")


class ForgeJob(WebuiJob):
    """Forge's job `p`: see `job.host.HostJob`."""

    def plan(self, *, hires: bool) -> SamplingPlan | None:
        with without_preparation(), noise_schedule(shared.sd_model):
            return super().plan(hires=hires)


@contextmanager
def without_preparation() -> Iterator[None]:
    """A context in which samplers load no U-Net and no ControlNet to the GPU, as they run with a stand-in."""
    before = [(module, name, getattr(module, name)) for module in SAMPLERS for name in PREPARING]
    try:
        for module, name, _ in before:
            setattr(module, name, lambda *_, **__: None)
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


@contextmanager
def noise_schedule(model) -> Iterator[None]:
    """A context with zero terminal SNR, if it is on; Forge itself sets it only during `p.sample`."""
    predictor = model.forge_objects.unet.model.predictor
    before = predictor.sigmas
    is_rescaled = shared.opts.sd_noise_schedule == "Zero Terminal SNR" or getattr(model.model_config, "ztsnr", False)
    try:
        if is_rescaled:
            predictor.set_sigmas(rescale_zero_terminal_snr_sigmas(before))
        yield
    finally:
        if is_rescaled:
            predictor.set_sigmas(before)
