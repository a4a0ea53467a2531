"""Caches: source latents in RAM and on disk, and the target's features."""
