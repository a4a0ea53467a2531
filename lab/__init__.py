"""Evaluation, benchmark and training of the demo checkpoints; not used by the extension or the command line."""
