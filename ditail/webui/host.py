"""The host of a job: AUTOMATIC1111's WebUI or Forge."""

from collections.abc import Callable

from . import loaded

if loaded.IS_FORGE:
    from .forge.checkpoints import ForgeCheckpoints as HostCheckpoints
    from .forge.loading import chosen_vae, restored_models
    from .forge.sampling import ForgeJob as HostJob
    from .forge.source_models import ForgeModels as HostModels
    from .forge.target import ForgeTarget as HostTarget
else:
    from .checkpoints import WebuiCheckpoints as HostCheckpoints
    from .loading import chosen_vae, restored_models
    from .sampling import WebuiJob as HostJob
    from .source_models import WebuiModels as HostModels
    from .target import WebuiTarget as HostTarget

__all__ = ["WebuiHost", "chosen_vae", "restored_models"]


class WebuiHost:
    """The WebUI with one job `p`: see `job.host.Host`."""

    def __init__(self, p, target_steps: Callable[[], list[int]]):
        self.checkpoints = HostCheckpoints(p)
        self.job = HostJob(p)
        self.models = HostModels(p, target_steps)
        self.target = HostTarget(p)
