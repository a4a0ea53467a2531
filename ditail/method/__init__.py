"""The method on tensors: schedules, layers, source latents, inversion, blending."""
