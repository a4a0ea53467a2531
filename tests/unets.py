"""Small real ldm U-Nets with random weights."""

import torch

SMALL = {
    "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 2, "num_heads": 4,
    "use_spatial_transformer": True, "context_dim": 32, "use_checkpoint": False, "legacy": False,
}
SD1 = {**SMALL, "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 2, 2], "transformer_depth": 1}
# SD 2.x: linear projections around the transformer, heads of a fixed width.
SD2 = {**SD1, "num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True}
SDXL = {**SMALL, "attention_resolutions": [4, 2], "channel_mult": [1, 2, 2], "transformer_depth": 2,
        "context_dim": [32, 32], "num_classes": 10}


def random_unet(config: dict, seed: int):
    """A U-Net of `config` whose zero-initialised layers are random too, so that every layer matters."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    class EachDepth(UNetModel):
        """ldm takes one context per transformer block (sgm's SDXL U-Net takes one for all)."""

        def forward(self, x, timesteps, context, **kwargs):
            return super().forward(x, timesteps, context=[context] * config["transformer_depth"], **kwargs)

    torch.manual_seed(seed)
    unet = EachDepth(**config)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet.eval().requires_grad_(False)
