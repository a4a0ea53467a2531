"""Whose functions the shortcuts may stand in for in Forge: its own U-Net's."""

from ...unet.shortcuts import Trusted

# Its attention's `forward` leaves `transformer_options` unread: what is in them is done by the block around it.
TRUSTED = Trusted(("backend.nn.unet",), ("backend.nn.unet",),
                  unread=("transformer_options", ("group_norm_wrapper",)))
