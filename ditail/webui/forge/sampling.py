"""What a sampler of Forge is going to do."""

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
        with nothing_is_moved(), noise_schedule(shared.sd_model):
            return super().plan(hires=hires)


@contextmanager
def nothing_is_moved() -> Iterator[None]:
    """A sampler that runs on a stand-in needs no U-Net on the GPU, nor the ControlNets of the last job."""
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
    """Forge puts zero terminal SNR in place around `p.sample` alone."""
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
