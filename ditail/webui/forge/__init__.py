"""Forge as a host: what differs from AUTOMATIC1111's WebUI, whose classes these build on."""

from .checkpoints import ForgeCheckpoints
from .loading import chosen_vae, restored_models
from .sampling import ForgeJob
from .source_models import ForgeModels
from .target import ForgeTarget

__all__ = ["ForgeCheckpoints", "ForgeJob", "ForgeModels", "ForgeTarget", "chosen_vae", "restored_models"]
