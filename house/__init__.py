"""Remakes the house checkpoints from scratch: `python -m house` (not needed to use them)."""
