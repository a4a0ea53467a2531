"""What a job costs beside plain generation of the same images, in FLOPs of the U-Net, before anything is loaded."""

from dataclasses import dataclass

from ..content.settings import DitailSettings


@dataclass(frozen=True)
class InjectedStep:
    """An injected step in evaluations of one row: source: the source's row; row: each row that takes its features."""

    source: float
    row: float


# By family: (steps with attention, steps with features alone), as `lab.counts` counts them, SD 1.x and 2.x at 512x512,
# SDXL at 1024x1024. The shares hardly change with the size.
USUAL_FAMILY = "SD 1.x"
STEPS = {
    "SD 1.x": (InjectedStep(1.000, 0.910), InjectedStep(0.438, 0.972)),
    "SDXL": (InjectedStep(0.946, 0.934), InjectedStep(0.562, 0.987)),
}


@dataclass(frozen=True)
class Cost:
    """Ratios to plain generation. cold: with the source pass; warm: with the source's latents cached."""

    cold: float
    warm: float


def cost_of(settings: DitailSettings, batch: int = 1, images: int = 1, family: str = USUAL_FAMILY) -> Cost:
    """The cost of `images` batches of `batch` images each from one source. family: as `unet.families` names it."""
    both, feature = STEPS.get(family, STEPS[USUAL_FAMILY])
    attention = settings.attn_ratio
    features_alone = max(0.0, settings.conv_ratio - attention)
    injected = {attention: both, features_alone: feature}
    sampling = 2 * batch * (1 - attention - features_alone)
    for share, step in injected.items():
        sampling += share * (step.source + _rows(step, batch, settings))
    plain = 2 * batch
    return Cost((_source_pass(settings, batch) / images + sampling) / plain, sampling / plain)


def _rows(step: InjectedStep, batch: int, settings: DitailSettings) -> float:
    """The target's rows of one injected step."""
    return 2 * batch * step.row


def _source_pass(settings: DitailSettings, batch: int) -> float:
    """In evaluations of one row for each step of the sampler."""
    return 1.0 + (2.0 * batch if settings.source == "generate" else 0.0)
