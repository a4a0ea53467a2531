"""Names that the command line lists in its help without loading what they stand for."""

SAMPLER_NAMES = ("DDIM", "DDIM (WebUI)", "Euler", "Euler a", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ SDE", "Heun", "LMS",
                 "UniPC")
