"""Refiners and hires checkpoints, which replace the target during a job: what of the injection is left for them."""

from collections.abc import Mapping

from torch import nn

from ..content.settings import DitailSettings
from ..errors import DitailError
from ..method.contours import Contours
from ..method.layers import parse_layers
from ..method.schedule import InjectionSteps
from ..unet.families import family_of_unet
from .host import Checkpoint, Host
from .plan import Sampling

ADVICE = {
    "refiner_checkpoint": "lower `conv_ratio`, `attn_ratio` and `contours` so that nothing is left for it to inject, "
                          "or choose another",
    "hr_checkpoint_name": "switch `hires` off, or choose another",
}


def injection_steps(sampling: Sampling, settings: DitailSettings) -> InjectionSteps:
    """The timesteps of a sampling that are injected."""
    return InjectionSteps.from_ratios(sampling.plan.timesteps, settings.conv_ratio, settings.attn_ratio,
                                      parse_layers(settings.layers))


def is_injected_up_to(timestep: float, sampling: Sampling, settings: DitailSettings) -> bool:
    """Whether anything is injected, or contours are moved, at this timestep of a sampling or a lower one."""
    moves_contours = settings.contours > 0 and Contours.end(sampling.plan.timesteps) < timestep
    return moves_contours or injection_steps(sampling, settings).has_any_up_to(timestep)


def check_replacements(host: Host, samplings: Mapping[bool, Sampling], settings: DitailSettings) -> None:
    """Raise DitailError if a checkpoint that is to be injected into is not of the target's family."""
    plans = {hires: sampling.plan for hires, sampling in samplings.items()}
    for checkpoint, hires, up_to, key in host.checkpoints.replacements(plans):
        timesteps = [t for t in plans[hires].timesteps if t <= up_to]
        if timesteps and is_injected_up_to(max(timesteps), samplings[hires], settings):
            try:
                host.checkpoints.check_family(checkpoint)
            except DitailError as error:
                raise DitailError(key, f"{error.sentence}; {ADVICE[key]}") from error


def check_replacement(checkpoint: Checkpoint, unet: nn.Module, target: Checkpoint, target_unet: nn.Module) -> None:
    """The same for a refiner that has taken over, whose file may have had no header to read."""
    family, target_family = family_of_unet(unet), family_of_unet(target_unet)
    if family != target_family:
        raise DitailError("refiner_checkpoint", f"{checkpoint.name} is {family}, the target {target.name} is "
                          f"{target_family}; {ADVICE['refiner_checkpoint']}")
