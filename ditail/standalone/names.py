"""Names that the command line's help and argument checks need, without slow imports."""

from pathlib import Path
from typing import Any, NamedTuple

ASSETS = Path(__file__).with_name("assets")

# `steps_offset` and "leading" spacing are the authors' grid, 1 + i * (1000 // N).
_GRID: dict[str, Any] = {"steps_offset": 1, "timestep_spacing": "leading"}
_DDIM = {**_GRID, "set_alpha_to_one": False, "clip_sample": False}


class Scheduler(NamedTuple):
    """A scheduler of diffusers: class name and options. skips_last: the U-Net is not called at the last timestep."""

    class_name: str
    options: dict[str, Any]
    skips_last: bool = False


SAMPLERS = {
    "DDIM": Scheduler("DDIMScheduler", _DDIM),
    # The WebUI's DDIM calls the U-Net at the same timesteps except the last one.
    "DDIM (WebUI)": Scheduler("DDIMScheduler", _DDIM, skips_last=True),
    "Euler": Scheduler("EulerDiscreteScheduler", _GRID),
    "Euler a": Scheduler("EulerAncestralDiscreteScheduler", _GRID),
    "DPM++ 2M": Scheduler("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
    "DPM++ 2M Karras": Scheduler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ SDE": Scheduler("DPMSolverSDEScheduler", {"timestep_spacing": "linspace"}),
    "Heun": Scheduler("HeunDiscreteScheduler", _GRID),
    "LMS": Scheduler("LMSDiscreteScheduler", _GRID),
    "UniPC": Scheduler("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
}
