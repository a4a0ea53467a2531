"""One job with Ditail: its source pass, and the injection into each of its samplings."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..cache.latents import LatentCache
from ..method.blending import start_latent
from ..method.latents import SourceLatents
from ..method.layers import parse_layers
from ..method.schedule import InjectionSteps, alphas_cumprod_at, first_steps
from ..method.tone import tone_shift
from ..unet.injection import Injection, inject
from .host import Host
from .plan import Sampling, plan_job
from .request import Request
from .source import Source, distinct
from .source_pass import Wanted, look_up, make_sources, sources_along


class Job:
    """Ditail in one job of a host.

    The host calls `prepare` once, then for each sampling `attach` before it, `follow` at each step and `detach` after
    it, whatever happened in it.

    sweep: the requests of later jobs, whose sources are made along where they need the same loading. is_plain: the job
    is a plain image (the diagonal of a matrix): its sources are made with the target, its sampling is left alone.
    is_preview: the host samples nothing, `preview` shows what the sources are; they get their reconstructions.
    """

    def __init__(self, host: Host, request: Request, cache: LatentCache, *, sweep: Sequence[Request] = (),
                 is_plain: bool = False, is_preview: bool = False):
        self.host, self.request, self.cache = host, request, cache
        self.sweep, self.is_plain, self.is_preview = sweep, is_plain, is_preview
        self.samplings: dict[bool, Sampling] = {}
        self.latents: dict[str, SourceLatents] = {}
        self._hooks = ExitStack()
        self._unet: nn.Module | None = None
        self._steps: InjectionSteps | None = None

    def prepare(self, init_images: Sequence[Tensor], *, can_record: bool = False) -> bool:
        """The source pass: source latents for every sampling of the job, from the cache or by making them.

        init_images: `[1, 3, H, W]` each, the content images where the request has none. can_record: the host can record
        its plain sampling; returns whether it shall, since that makes the source that is missing.
        Raises DitailError, and Interrupted if the user ends it.
        """
        missing = self.plan(init_images)
        if can_record and self._is_its_own_source and any(source.kind == "generate" for source in missing):
            return True
        if missing:
            missing += sources_along(self.host, self.cache, self.sweep, list(self.samplings.values()), missing)
            self._make(missing)
        return False

    def prepare_ahead(self, init_images: Sequence[Tensor]) -> None:
        """Cache what other models than the target make, for `prepare` to find.

        A host that has several jobs to do calls this of each before the first `prepare`, and so loads each model once.
        """
        target = self.host.checkpoints.target()
        others = [source for source in self.plan(init_images) if source.checkpoint.path != target.path]
        if others:
            self._make(others)
        self.latents = {}

    def plan(self, init_images: Sequence[Tensor]) -> list[Source]:
        """Set `samplings` and the `latents` that are cached; the sources that are missing are returned."""
        host, settings = self.host, self.request.settings
        host.checkpoints.check_family(self.request.checkpoint or host.checkpoints.target())
        host.target.check_layers(parse_layers(settings.layers))
        if not self.is_plain:
            host.target.keep_attention_whole()
        self.samplings = plan_job(host, self.request, init_images, is_plain=self.is_plain)
        wanted = Wanted(self._wants_images, self.is_preview)
        self.latents, missing = look_up(self.cache, self.sources, wanted)
        return missing

    def _make(self, missing: Sequence[Source]) -> None:
        needs_images = any(source.needs_image for source in missing)
        wanted = Wanted(self._wants_images or needs_images, self.is_preview)
        self.latents |= make_sources(self.host, self.cache, missing, self.latents, wanted)

    @property
    def _wants_images(self) -> bool:
        settings = self.request.settings
        return settings.show_source or settings.colours == "content" or self.is_preview

    @property
    def sources(self) -> list[Source]:
        """Every source of the job, once."""
        by_key = {source.key: source for sampling in self.samplings.values() for source in sampling.all_sources}
        return list(by_key.values())

    @property
    def _is_its_own_source(self) -> bool:
        """Whether the plain sampling is the generation of its source, and nothing but the latents is needed."""
        settings = self.request.settings
        if not self.is_plain or settings.source != "generate" or self._wants_images:
            return False
        own_prompts = all(texts == (settings.source_prompt or texts[0], settings.source_negative_prompt or texts[1])
                          for texts in self.host.job.prompts())
        return own_prompts and self.host.target.is_plain()

    def keep_recorded(self, first: int, latents: Sequence[SourceLatents]) -> None:
        """Cache what the plain sampling of the images from number `first` on passed through, by image, and invert it.

        The model that made them is in place now; a later job would have to load it again.
        """
        sources = self.samplings[False].sources[first : first + self.host.job.batch_size]
        generated = [source.origin for source in sources]
        # Only of a batch that is what the source pass would have sampled at once.
        if [source.key for source in generated] != list(generated[0].batch):
            return
        for source, one in zip(generated, latents, strict=True):
            self.cache.put(source.key, one, source.metadata(self.host))
            self.latents[source.key] = one
        missing = [source for source in distinct(sources) if source.key not in self.latents]
        if missing:
            self._make(missing)

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
            sampling.plan.start_from(self.start_of(sampling, first), x, noise)

    def start_of(self, sampling: Sampling, first: int) -> Tensor:
        """The VP latents `[b, c, h, w]` that the images from number `first` on start from."""
        mixed, order, _ = sampling.mixed(first, self.host.job.batch_size, self.latents)
        timestep = sampling.plan.timesteps[-1]
        start = start_latent(mixed, timestep)[order]
        tones = [self.latents[tone.key].at(timestep) for tone in sampling.tones[first : first + len(order)]]
        if not tones:
            return start
        content = mixed[0].latents
        z0 = (content.at(0) if content.z0 is None else content.z0).expand(max(order) + 1, -1, -1, -1)
        abar = float(alphas_cumprod_at(content.alphas_cumprod, torch.tensor([timestep])))
        return start + abar**0.5 * tone_shift(z0[order], torch.cat(tones), self.request.settings.tone)

    def guided_above(self, *, hires: bool) -> float:
        """The timestep up to which the host samples with a CFG scale of 1; `-inf` for none."""
        sampling = self.samplings.get(hires)
        if sampling is None or self.is_plain:
            return float("-inf")
        return first_steps(sampling.plan.timesteps, self.request.settings.guidance_until)

    def follow(self, *, hires: bool, first: int) -> None:
        """Called at each step, before the U-Net is."""
        if self._unet is None:
            return
        if self.host.target.unet() is not self._unet:
            self._hook(self.samplings[hires], first)
        elif self._steps is not None:
            self.host.target.check_injection(self._steps)  # what others do to it, they may have begun since

    def detach(self) -> None:
        """Take the hooks off every U-Net that has them."""
        self._unet = None
        self._hooks.close()

    def _hook(self, sampling: Sampling, first: int) -> None:
        host, settings = self.host, self.request.settings
        host.target.keep_attention_whole()
        mixed, order, keys = sampling.mixed(first, host.job.batch_size, self.latents)

        cond_only = settings.inject == "cond"

        def row_images(count: int, call: Mapping) -> list[int | None]:
            return [order[row.image] if row.is_cond or not cond_only else None
                    for row in host.target.rows_of(count, call)]

        steps = InjectionSteps.from_ratios(sampling.plan.timesteps, settings.conv_ratio, settings.attn_ratio,
                                           parse_layers(settings.layers))
        host.target.check_injection(steps)
        unet, null = host.target.unet(), host.target.null(sampling.size)
        self._hooks.enter_context(inject(unet, Injection(
            mixed, null, steps, sampling.mask, row_images if cond_only or len(set(order)) > 1 else None,
            host.target.savings(),
            host.target.features(keys, null, sampling.size), host.target.without_others)))
        self._unet, self._steps = unet, steps
