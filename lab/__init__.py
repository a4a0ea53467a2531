"""Evaluation, benchmark and the training of the demo checkpoints: nothing that a user of Ditail loads."""
