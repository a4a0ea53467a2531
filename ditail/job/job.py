"""One job with Ditail: its source pass, and the injection into each of its samplings."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cache.latents import LatentCache
from ..method.blending import start_content, start_latent
from ..method.contours import Contours
from ..method.latents import SourceLatents
from ..method.layers import parse_layers
from ..method.schedule import InjectionSteps, alphas_cumprod_at, end_of_first_steps
from ..method.tone import tone_shift
from ..unet.injection import Injection, inject
from ..unet.rows import SourceRow
from .host import Checkpoint, Host
from .plan import Sampling, plan_job
from .refiner import check_replacement, check_replacements, injection_steps, is_injected_up_to
from .request import Request
from .source import Source, distinct
from .source_pass import ImageNeeds, look_up, make_sources, sources_of_later_jobs


@dataclass(frozen=True)
class _Hooked:
    """A U-Net with hooks, the checkpoint of its weights, and the steps that are injected."""

    unet: nn.Module
    checkpoint: Checkpoint
    steps: InjectionSteps


class Job:
    """Ditail in one job of a host.

    The host calls `prepare` once, then for each sampling `attach` before it and `detach` after it, also if it raised;
    and `follow` at each step, unless its U-Net is always the same.

    sweep: the requests of later jobs; their sources are computed with this job's if a source model is loaded anyway.
    is_plain: the job generates a plain image (the diagonal of a matrix), so nothing is injected; its sources are only
    computed for the cache. is_preview: the host does not sample; `preview` shows the sources and their reconstructions.
    """

    def __init__(self, host: Host, request: Request, cache: LatentCache, *, sweep: Sequence[Request] = (),
                 is_plain: bool = False, is_preview: bool = False):
        self.host, self.request, self.cache = host, request, cache
        self.sweep, self.is_plain, self.is_preview = sweep, is_plain, is_preview
        self.samplings: dict[bool, Sampling] = {}
        self.latents: dict[str, SourceLatents] = {}
        self._hooks = ExitStack()
        self._hooked: _Hooked | None = None

    def prepare(self, init_images: Sequence[Tensor], *, can_record: bool = False) -> bool:
        """The source pass: get source latents for every sampling of the job, from the cache or by computing them.

        init_images: `[1, 3, H, W]` each, the content images if the request has none. can_record: the host can record
        its plain sampling. Returns whether it has to, because that sampling computes the missing source.
        Raises DitailError, and Interrupted if the user ends the job.
        """
        missing = self.plan(init_images)
        if can_record and self._is_its_own_source and any(source.kind == "generate" for source in missing):
            return True
        if missing:
            missing += sources_of_later_jobs(self.host, self.cache, self.sweep, list(self.samplings.values()), missing)
            self._make(missing)
        return False

    def prepare_ahead(self, init_images: Sequence[Tensor]) -> None:
        """Compute the sources of models other than the target, so that `prepare` finds them in the cache.

        A host with several jobs calls this for each before the first `prepare`, and so loads each model once.
        """
        target = self.host.checkpoints.target()
        others = [source for source in self.plan(init_images) if source.checkpoint.path != target.path]
        if others:
            self._make(others)
        self.latents = {}

    def plan(self, init_images: Sequence[Tensor]) -> list[Source]:
        """Set `samplings` and the cached ones of `latents`. Returns the missing sources."""
        host, settings = self.host, self.request.settings
        host.checkpoints.check_family(self.request.checkpoint or host.checkpoints.target())
        host.target.check_layers(parse_layers(settings.layers))
        if not self.is_plain:
            host.target.keep_attention_whole()
        self.samplings = plan_job(host, self.request, init_images, is_plain=self.is_plain)
        if not (self.is_plain or self.is_preview):
            check_replacements(host, self.samplings, settings)
        needs = ImageNeeds(self._needs_images, self.is_preview)
        self.latents, missing = look_up(self.cache, self.sources, needs)
        return missing

    def _make(self, missing: Sequence[Source]) -> None:
        needs_images = self._needs_images or any(source.needs_image for source in missing)
        needs = ImageNeeds(needs_images, self.is_preview)
        self.latents |= make_sources(self.host, self.cache, missing, self.latents, needs)

    @property
    def _needs_images(self) -> bool:
        """Whether the sources' images are needed after the source pass."""
        settings = self.request.settings
        return settings.show_source or settings.colours == "content" or self.is_preview

    @property
    def sources(self) -> list[Source]:
        """The distinct sources of the job."""
        by_key = {source.key: source for sampling in self.samplings.values() for source in sampling.all_sources}
        return list(by_key.values())

    @property
    def _is_its_own_source(self) -> bool:
        """Whether the plain sampling is also the generation of the source, and only its latents are needed."""
        settings = self.request.settings
        if not self.is_plain or settings.source != "generate" or self._needs_images:
            return False
        has_same_prompts = all(
            texts == (settings.source_prompt or texts[0], settings.source_negative_prompt or texts[1])
            for texts in self.host.job.prompts())
        return has_same_prompts and self.host.target.is_plain()

    def keep_recorded(self, first: int, latents: Sequence[SourceLatents]) -> None:
        """Cache the recorded latents of the plain sampling of the images from number `first` on, and invert the images.

        latents: one per image. This is done now because the model is loaded; a later job would have to load it again.
        """
        sources = self.samplings[False].sources[first : first + self.host.job.batch_size]
        generated = [source.origin for source in sources]
        # Only a batch that the source pass would have sampled in the same way gives the same latents.
        if [source.key for source in generated] != list(generated[0].batch_keys):
            return
        for source, recorded in zip(generated, latents, strict=True):
            self.cache.put(source.key, recorded, source.metadata(self.host))
            self.latents[source.key] = recorded
        missing = [source for source in distinct(sources) if source.key not in self.latents]
        if missing:
            self._make(missing)

    def attach(self, x: Tensor, noise: Tensor, *, hires: bool, first: int) -> None:
        """Hook the U-Net for the sampling that is about to begin, and set its start latent.

        x, noise: the tensors that the sampler will read (see `SamplingPlan`). first: the number of its first image.
        """
        self.detach()
        sampling = self.samplings.get(hires)
        if sampling is None or self.is_plain:
            return
        self._hook(sampling, first)
        if self.request.settings.start == "source" and not hires:
            sampling.plan.start_from(self.start_of(sampling, first), x, noise)

    def start_of(self, sampling: Sampling, first: int) -> Tensor:
        """The VP latents `[b, c, h, w]` at which the sampling of the images from number `first` on starts."""
        sources, rows, _ = sampling.weighted_sources(first, self.host.job.batch_size, self.latents)
        timestep = sampling.plan.start
        start = start_latent(sources, timestep)[rows]
        tones = [self.latents[tone.key].at(timestep) for tone in sampling.tones[first : first + len(rows)]]
        if not tones:
            return start
        z0 = start_content(sources, timestep)[rows]
        abar = float(alphas_cumprod_at(sources[0].latents.alphas_cumprod, torch.tensor([timestep])))
        return start + abar**0.5 * tone_shift(z0, torch.cat(tones), self.request.settings.tone)

    def guided_above(self, *, hires: bool) -> float:
        """At timesteps up to this one the host uses a CFG scale of 1; `-inf` = never."""
        sampling = self.samplings.get(hires)
        if sampling is None or self.is_plain:
            return float("-inf")
        return end_of_first_steps(sampling.plan.timesteps, self.request.settings.guidance_until)

    def follow(self, *, hires: bool, first: int, timestep: float) -> None:
        """Hook a U-Net that was replaced during sampling (refiner). Called at each step before the U-Net is.

        Raises DitailError if it can't be injected into, and is to be.
        """
        hooked, host = self._hooked, self.host
        if hooked is None:
            return
        unet, checkpoint, sampling = host.target.unet(), host.checkpoints.target(), self.samplings[hires]
        # A host may also load the other checkpoint's weights into the same U-Net.
        if unet is hooked.unet and checkpoint.path == hooked.checkpoint.path:
            host.target.check_injection(hooked.steps)  # other extensions may have begun to change it
        elif is_injected_up_to(timestep, sampling, self.request.settings):
            check_replacement(checkpoint, unet, hooked.checkpoint, hooked.unet)
            self._hook(sampling, first)
        else:
            self.detach()

    def detach(self) -> None:
        """Remove the hooks from every U-Net that has them."""
        self._hooked = None
        self._hooks.close()

    def _hook(self, sampling: Sampling, first: int) -> None:
        host, settings = self.host, self.request.settings
        host.target.keep_attention_whole()
        sources, rows, keys = sampling.weighted_sources(first, host.job.batch_size, self.latents)
        cond_only = settings.inject == "cond"

        def source_rows(count: int, call: Mapping) -> list[SourceRow]:
            return [SourceRow(rows[row.image], row.is_cond or not cond_only)
                    for row in host.target.rows_of(count, call)]

        # Else every row of a call, however many there are, takes the one row of the source.
        needs_rows = cond_only or len(set(rows)) > 1
        steps = injection_steps(sampling, settings)
        host.target.check_injection(steps)
        contours = (Contours.on_first_steps(settings.contours, sampling.plan.timesteps, host.target.prediction())
                    if settings.contours else None)
        unet, null = host.target.unet(), host.target.null(sampling.size)
        injection = Injection(
            sources, null, steps, sampling.mask, source_rows if needs_rows else None, host.target.savings(),
            host.target.features(keys, null, sampling.size), host.target.without_others, contours)
        self._hooks.enter_context(inject(unet, injection))
        self._hooked = _Hooked(unet, host.checkpoints.target(), steps)
