"""An ldm U-Net: where Ditail injects, the hooks, and the computations that they save."""
