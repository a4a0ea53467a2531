"""Training of the demo checkpoints: art, text encoder, autoencoder, U-Nets, style classifier (see `lab.train`)."""
