"""The source pass: which sources of a job have to be made, and making them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from torch import Tensor

from ..cache.latents import LatentCache
from ..method.inversion import invert
from ..method.latents import SourceLatents
from .host import Host, Model, Progress
from .plan import Sampling, fitted
from .request import Request
from .source import Source, batches_of, distinct, sources_of

log = logging.getLogger("ditail")

TEXTS = {"image": "inverting the content image", "generate": "generating the source image"}
BYTES_PER_VALUE, CHANNELS = 4, 4


def cached_latents(cache: LatentCache, sources: Sequence[Source], *, with_images: bool) -> dict[str, SourceLatents]:
    """The sources' latents that are in the cache, by key.

    with_images: generated ones without the image that they end in are no use; nor are they as parents.
    """
    cached = {source.key: latents for source in sources if (latents := cache.get(source.key)) is not None}
    parents = {source.parent.key for source in sources if source.parent and source.key not in cached}
    for source in sources:
        needs_image = source.kind == "generate" and (with_images or source.key in parents)
        if needs_image and source.key in cached and cached[source.key].image is None:
            del cached[source.key]
    return cached


def missing_sources(sources: Sequence[Source], latents: Mapping[str, SourceLatents]) -> list[Source]:
    """Those that have to be made; a batch is made whole, since rounding differs with what is sampled at once."""
    incomplete = {key for source in sources if source.key not in latents for key in source.batch}
    return [source for source in sources if source.key in incomplete]


def sources_along(host: Host, cache: LatentCache, requests: Sequence[Request], samplings: Sequence[Sampling],
                  missing: Sequence[Source]) -> list[Source]:
    """Inverted sources that later jobs of a sweep need (`requests`), where a model has to be loaded anyway."""
    if all(source.checkpoint.path == host.checkpoints.target().path for source in missing):
        return []
    known = {source.key for source in missing}
    further = distinct(source for request in requests for sampling in samplings
                       for source in sources_of(host, request, sampling.size, sampling.plan,
                                                _contents(host, request, sampling)))
    further = [source for source in further if source.key not in known and cache.get(source.key) is None]
    height, width = missing[0].latent_hw
    nbytes = BYTES_PER_VALUE * CHANNELS * height * width * len(missing[0].plan.timesteps)
    return further[: max(0, cache.budget // nbytes - len(missing))]


def _contents(host: Host, request: Request, sampling: Sampling) -> Sequence[Tensor]:
    """The content images of a later job: its own, or those of this one."""
    if request.image is None or request.collage:
        return sampling.contents
    return [fitted(host, request.image, sampling.size, request.settings.resize_mode)]


def make_sources(host: Host, cache: LatentCache, sources: Sequence[Source], known: Mapping[str, SourceLatents], *,
                 with_images: bool) -> dict[str, SourceLatents]:
    """The latents of sources by key, which are in the cache afterwards, too.

    known: latents that are there already, for sources whose parents are not among these. with_images: generated ones
    get the image that they end in. When this is interrupted or raises, what is complete is in the cache, and no more.
    """
    batches, made = batches_of(sources, host.checkpoints.target()), {}
    with (host.models.source_pass([len(batch[0].plan.timesteps) for batch in batches]) as progress,
          host.models.borrowed_models() as borrow):
        for source, latents in _made(host, batches, dict(known), progress, borrow, with_images):
            made[source.key] = latents
            cache.put(source.key, latents, source.metadata(host))
    return made


def _made(host: Host, batches: Sequence[list[Source]], known: dict[str, SourceLatents], progress: Progress,
          borrow: Callable, with_images: bool) -> Iterator[tuple[Source, SourceLatents]]:
    for _, group in groupby(batches, lambda batch: batch[0].needs):
        alike = list(group)
        first, count = alike[0][0], sum(map(len, alike))
        progress.show(f"loading {first.checkpoint.name}")
        why = f"{TEXTS[first.kind]} ({count} in all)"
        with borrow(first.checkpoint, first.vae_file, first.networks, why) as model:
            for batch in alike:
                progress.begin(len(batch[0].plan.timesteps), TEXTS[batch[0].kind])
                latents = _make_batch(host, model, batch, known, progress, with_images)
                progress.end()
                known |= {source.key: one for source, one in zip(batch, latents, strict=True)}
                yield from zip(batch, latents, strict=True)


def _make_batch(host: Host, model: Model, batch: list[Source], known: Mapping[str, SourceLatents], progress: Progress,
                with_images: bool) -> list[SourceLatents]:
    first = batch[0]
    if first.kind == "generate":
        images = [(source.prompts, source.image) for source in batch]
        latents = host.models.generate(model, images, first.size, first.plan, progress.check, decoded=with_images)
    else:
        latents = [_inverted(host, model, first, known, progress)]
    progress.check()
    for source, one in zip(batch, latents, strict=True):
        log.info(*_message(host, source, len(one)))
    return latents


def _message(host: Host, source: Source, steps: int) -> tuple:
    if source.kind == "generate":
        seed = host.job.generation_metadata(source.image)["seed"]
        return "generated the source image (seed %s) with %s, %d steps", seed, source.checkpoint.name, steps
    settings = source.request.settings
    return ("inverted the content image (alpha %g, beta %g) with %s, %d steps", settings.alpha, settings.beta,
            source.checkpoint.name, steps)


def _inverted(host: Host, model: Model, source: Source, known: Mapping[str, SourceLatents], progress: Progress,
              ) -> SourceLatents:
    settings, timesteps = source.request.settings, source.plan.timesteps
    z0 = host.models.encode(model, source.content_pixels(known), source.latent_hw)
    denoise = host.models.denoiser(model, source.prompts, settings.alpha, settings.beta, source.size, timesteps)
    return invert(denoise, z0, timesteps, host.models.alphas_cumprod(model), progress.step)
