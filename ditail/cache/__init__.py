"""What is kept for later images: source latents in RAM and on disk, the target's features."""
