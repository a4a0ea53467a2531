"""One job with Ditail: its source pass, and the injection into each of its samplings."""

from collections.abc import Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from ..cache.latents import LatentCache
from ..method.blending import start_latent
from ..method.latents import SourceLatents
from ..method.layers import parse_layers
from ..method.schedule import InjectionSteps
from ..unet.injection import Injection, inject
from .host import Host
from .plan import Sampling, plan_job
from .request import Request
from .source import Source
from .source_pass import cached_latents, make_sources, missing_sources, sources_along


class Job:
    """Ditail in one job of a host.

    The host calls `prepare` once, then for each sampling `attach` before it, `follow` at each step and `detach` after
    it, whatever happened in it.

    sweep: the requests of later jobs, whose sources are made along where they need the same loading. is_plain: the job
    is a plain image (the diagonal of a matrix): its sources are made with the target, its sampling is left alone.
    """

    def __init__(self, host: Host, request: Request, cache: LatentCache, *, sweep: Sequence[Request] = (),
                 is_plain: bool = False):
        self.host, self.request, self.cache = host, request, cache
        self.sweep, self.is_plain = sweep, is_plain
        self.samplings: dict[bool, Sampling] = {}
        self.latents: dict[str, SourceLatents] = {}
        self._hooks = ExitStack()
        self._unet: nn.Module | None = None
        self._rows: list[int] = []

    def prepare(self, init_images: Sequence[Tensor], *, can_record: bool = False) -> bool:
        """The source pass: source latents for every sampling of the job, from the cache or by making them.

        init_images: `[1, 3, H, W]` each, the content images where the request has none. can_record: the host can record
        its plain sampling; returns whether it shall, since that makes the source that is missing.
        Raises DitailError, and Interrupted if the user ends it.
        """
        host, settings = self.host, self.request.settings
        host.checkpoints.check_family(self.request.checkpoint or host.checkpoints.target())
        host.target.check_layers(parse_layers(settings.layers))
        if not self.is_plain:
            host.target.keep_attention_whole()
        self.samplings = plan_job(host, self.request, init_images, is_plain=self.is_plain)
        sources = self.sources
        self.latents = cached_latents(self.cache, sources, with_images=settings.show_source)
        missing = missing_sources(sources, self.latents)
        if missing and can_record and self._is_its_own_source:
            return True
        if missing:
            missing += sources_along(host, self.cache, self.sweep, list(self.samplings.values()), missing)
            with_images = settings.show_source or any(source.parent for source in sources)
            self.latents |= make_sources(host, self.cache, missing, self.latents, with_images=with_images)
        return False

    @property
    def sources(self) -> list[Source]:
        """Every source of the job, once."""
        by_key = {source.key: source for sampling in self.samplings.values() for source in sampling.all_sources}
        return list(by_key.values())

    @property
    def _is_its_own_source(self) -> bool:
        """Whether the plain sampling is the generation of its source, and nothing but the latents is needed."""
        return (self.is_plain and self.request.settings.source == "generate" and not self.request.settings.show_source
                and self.host.target.is_plain())

    def keep_recorded(self, first: int, latents: Sequence[SourceLatents]) -> None:
        """Cache what the plain sampling of the images from number `first` on passed through, by image."""
        sources = self.samplings[False].sources[first : first + self.host.job.batch_size]
        # Only of a batch that is what the source pass would have sampled at once.
        if [source.key for source in sources] == list(sources[0].batch):
            for source, one in zip(sources, latents, strict=True):
                self.cache.put(source.key, one, source.metadata(self.host))

    def attach(self, x: Tensor, noise: Tensor, *, hires: bool, first: int) -> None:
        """Hook the U-Net for the sampling that is about to begin, and set where it starts.

        x, noise: the tensors that the sampler is about to read (see `SamplingPlan`). first: its first image's number.
        """
        self.detach()
        sampling = self.samplings.get(hires)
        if sampling is None or self.is_plain:
            return
        self._hook(sampling, first)
        if self.request.settings.start == "source" and not hires:
            mixed, order, _ = sampling.mixed(first, self.host.job.batch_size, self.latents)
            sampling.plan.start_from(start_latent(mixed, sampling.plan.timesteps[-1])[order], x, noise)

    def follow(self, rows: Sequence[int], *, hires: bool, first: int) -> None:
        """Called at each step. rows: the image of each row that the U-Net will be called with, in order."""
        if self._unet is None:
            return
        self._rows = list(rows)
        if self.host.target.unet() is not self._unet:
            self._hook(self.samplings[hires], first)

    def detach(self) -> None:
        """Take the hooks off every U-Net that has them."""
        self._unet = None
        self._hooks.close()

    def _hook(self, sampling: Sampling, first: int) -> None:
        host, settings = self.host, self.request.settings
        host.target.keep_attention_whole()
        mixed, order, keys = sampling.mixed(first, host.job.batch_size, self.latents)

        def row_images(count: int) -> list[int]:
            taken, self._rows = self._rows[:count], self._rows[count:]
            return [order[image] for image in taken]

        steps = InjectionSteps.from_ratios(sampling.plan.timesteps, settings.conv_ratio, settings.attn_ratio,
                                           parse_layers(settings.layers))
        host.target.check_injection(steps)
        unet, null = host.target.unet(), host.target.null(sampling.size)
        self._hooks.enter_context(inject(unet, Injection(
            mixed, null, steps, sampling.mask, row_images, host.target.savings(),
            host.target.features(keys, null, sampling.size), host.target.without_others)))
        self._unet = unet
