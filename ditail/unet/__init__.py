"""An ldm U-Net: where Ditail injects, the hooks, and the work that they make needless."""
