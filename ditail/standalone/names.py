"""What the command lines' help tells without loading anything."""

from pathlib import Path

ASSETS = Path(__file__).with_name("assets")

SAMPLER_NAMES = ("DDIM", "DDIM (WebUI)", "Euler", "Euler a", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ SDE", "Heun", "LMS",
                 "UniPC")
