"""The modules of Forge whose functions the shortcuts may replace."""

from ...unet.shortcuts import Trusted

# The attention's `forward` does not read `transformer_options`; the block around it does.
TRUSTED = Trusted(("backend.nn.unet",), ("backend.nn.unet",),
                  unread=("transformer_options", ("group_norm_wrapper",)))
