"""Ditail without a WebUI: the command line and its host (ldm's modules, transformers, diffusers' schedulers)."""
