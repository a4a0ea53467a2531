"""The cost of a job relative to plain generation of the same images, in FLOPs of the U-Net, without loading a model."""

from dataclasses import dataclass

from ..content.settings import DitailSettings
from ..method.schedule import inversion_timesteps


@dataclass(frozen=True)
class InjectedStep:
    """Cost of an injected step, in plain evaluations of one row. source: a source row; row: a row that is injected."""

    source: float
    row: float


# By family: (steps with attention, steps with features alone), counted by `lab.counts` for SD 1.x and 2.x at 512x512
# and SDXL at 1024x1024. The ratios hardly change with the size.
USUAL_FAMILY = "SD 1.x"
STEPS = {
    USUAL_FAMILY: (InjectedStep(1.000, 0.910), InjectedStep(0.438, 0.972)),
    "SDXL": (InjectedStep(0.946, 0.934), InjectedStep(0.562, 0.987)),
}


@dataclass(frozen=True)
class Cost:
    """Ratios to plain generation. cold: with the source pass; warm: with the source's latents cached."""

    cold: float
    warm: float


def cost_of(settings: DitailSettings, steps: int, batch: int = 1, count: int = 1, family: str = USUAL_FAMILY,
            prompts: int = 1) -> Cost:
    """The cost of `count` batches of `batch` images each.

    family: as `unet.families` names it. prompts: of each image, several for a sum of prompts (`AND`).
    Not counted: further sources (`sources`), which add a source pass and a source row at each of their steps.
    """
    plain = (prompts + 1) * batch * steps
    sampling = sum(_step(settings, i / steps, batch, family, prompts) for i in range(steps))
    # Each image has its own generated source; a content image is shared by all of them.
    sources = batch if settings.source == "generate" else 1 / count
    # One call of the target, cached by prompt.
    tone = 1 / count if settings.tone and settings.start == "source" else 0
    return Cost((sources * _source(settings, steps, prompts) + tone + sampling) / plain, sampling / plain)


def _step(settings: DitailSettings, done: float, batch: int, family: str, prompts: int) -> float:
    """Evaluations of one row in a step. done: the share of the steps before it."""
    conditional = prompts * batch
    unconditional = batch if done < settings.guidance_until else 0
    if done >= max(settings.conv_ratio, settings.attn_ratio):
        return conditional + unconditional
    with_attention, features_alone = STEPS.get(family, STEPS[USUAL_FAMILY])
    kind = with_attention if done < settings.attn_ratio else features_alone
    sources = batch if settings.source == "generate" else 1
    uninjected = unconditional if settings.inject == "cond" else 0
    return sources * kind.source + (conditional + unconditional - uninjected) * kind.row + uninjected


def _source(settings: DitailSettings, steps: int, prompts: int) -> float:
    """Evaluations of one row for computing a source."""
    inverted = len(inversion_timesteps(range(steps), settings.inversion_steps))
    if settings.source == "image":
        return inverted
    return (prompts + 1) * steps + (inverted if settings.source_latents == "inverted" else 0)
