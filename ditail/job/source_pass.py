"""The source pass: finding the sources of a job that are not cached, and computing them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..cache.latents import LatentCache
from ..method.inversion import Denoiser, invert, sample_ddim
from ..method.latents import SourceLatents
from ..method.tone import SEED, target_estimate
from .host import Host, Model, Progress
from .plan import Sampling, content_tensor
from .request import Request
from .source import Source, batches_of, distinct, sources_of

log = logging.getLogger("ditail")

TEXTS = {"image": "inverting the content image", "generate": "generating the source image",
         "tone": "estimating the target's colours"}
RECONSTRUCTING = "reconstructing the content image"
BYTES_PER_VALUE, CHANNELS = 4, 4


@dataclass(frozen=True)
class ImageNeeds:
    """What is needed besides the latents: generated sources' images, inverted sources' reconstructions."""

    images: bool = False
    reconstructions: bool = False


def look_up(cache: LatentCache, sources: Sequence[Source], needs: ImageNeeds,
            ) -> tuple[dict[str, SourceLatents], list[Source]]:
    """(cached latents of the sources and their parents by key, sources to compute).

    A cached generation that lacks a needed image or `z_0` is computed again. A batch is computed as a whole, as
    rounding depends on it.
    """
    latents = {source.key: cached for source in sources if (cached := cache.get(source.key)) is not None
               and not (needs.reconstructions and source.kind == "image" and cached.image is None)}
    # Those of which the generated image is needed: to be shown, or because its inversion is not cached.
    children = [source for source in sources if source.parent and (needs.images or source.key not in latents)]
    generated = _generations(sources, children)
    for source in generated:
        to_invert = [child for child in children if child.origin.key == source.key and child.key not in latents]
        cached = cache.get(source.key)
        if cached is not None and _is_sufficient(cached, to_invert, needs):
            latents[source.key] = cached
        else:
            latents.pop(source.key, None)
    needed = distinct([*sources, *generated])
    incomplete = {key for source in needed if source.key not in latents for key in source.batch_keys}
    return latents, [source for source in needed if source.key in incomplete]


def _generations(sources: Sequence[Source], children: Sequence[Source]) -> list[Source]:
    """The generated ones of the sources, and the parents of `children` with all that are generated in their batches."""
    batch_keys = {key for child in children for key in child.origin.batch_keys}
    return distinct(source.origin for source in sources
                    if source.kind == "generate" or (source.parent and source.origin.key in batch_keys))


def _is_sufficient(generated: SourceLatents, to_invert: Sequence[Source], needs: ImageNeeds) -> bool:
    """Whether a cached generation has what is needed of it. to_invert: the sources that invert its image."""
    needs_image = needs.images or any(source.needs_image for source in to_invert)
    has_image, has_z0 = generated.image is not None, generated.z0 is not None
    return (has_image or not needs_image) and (has_z0 or not to_invert)


def sources_of_later_jobs(host: Host, cache: LatentCache, requests: Sequence[Request], samplings: Sequence[Sampling],
                          missing: Sequence[Source]) -> list[Source]:
    """The inverted sources of the `requests` of later jobs that fit into the cache; empty if no model is loaded now.

    missing: the sources of this job that are computed now.
    """
    if all(source.checkpoint.path == host.checkpoints.target().path for source in missing):
        return []
    known = {source.key for source in missing}
    further = distinct(source for request in requests for sampling in samplings
                       if (contents := _contents(host, request, sampling))
                       for source in sources_of(host, request, sampling.size, sampling.plan, contents))
    further = [source for source in further if source.key not in known and cache.get(source.key) is None]
    height, width = missing[0].latent_hw
    nbytes = BYTES_PER_VALUE * CHANNELS * height * width * len(missing[0].plan.timesteps)
    return further[: max(0, cache.budget // nbytes - len(missing))]


def _contents(host: Host, request: Request, sampling: Sampling) -> Sequence[Tensor]:
    """The content images of a later job: its request's, or those of this job's `sampling`."""
    if request.image is None or request.collage:
        return sampling.contents
    return [content_tensor(host, request.image, sampling.size, request.settings.resize_mode)]


def make_sources(host: Host, cache: LatentCache, sources: Sequence[Source], known: Mapping[str, SourceLatents],
                 needs: ImageNeeds) -> dict[str, SourceLatents]:
    """Compute the latents of sources, put them into the cache, and return them by key.

    known: latents of parents that are not among `sources`. If this is interrupted or raises, only complete latents are
    in the cache.
    """
    batches, results = batches_of(sources, host.checkpoints.target()), {}
    counts = [len(batch[0].timesteps) for batch in batches]
    if needs.reconstructions:
        counts += [len(batch[0].timesteps) for batch in batches if batch[0].kind == "image"]
    with host.models.source_pass(counts) as progress, host.models.borrowed_models() as borrow:
        for source, latents in _make_batches(host, batches, dict(known), progress, borrow, needs):
            results[source.key] = latents
            cache.put(source.key, latents, source.metadata(host))
    return results


def _make_batches(host: Host, batches: Sequence[list[Source]], known: dict[str, SourceLatents], progress: Progress,
                  borrow: Callable, needs: ImageNeeds) -> Iterator[tuple[Source, SourceLatents]]:
    for _, group in groupby(batches, lambda batch: batch[0].model_key):
        model_batches = list(group)
        first, count = model_batches[0][0], sum(map(len, model_batches))
        progress.show(f"loading {first.checkpoint.name}")
        why = f"{TEXTS[first.kind]} ({count} in all)"
        with borrow(first.checkpoint, first.vae_file, first.networks, why) as model:
            for batch in model_batches:
                progress.begin(len(batch[0].timesteps), TEXTS[batch[0].kind])
                latents = _make_batch(host, model, batch, known, progress, needs)
                progress.end()
                known |= {source.key: z for source, z in zip(batch, latents, strict=True)}
                yield from zip(batch, latents, strict=True)
        del model  # before the next is loaded: not both are to be in memory


def _make_batch(host: Host, model: Model, batch: list[Source], known: Mapping[str, SourceLatents], progress: Progress,
                needs: ImageNeeds) -> list[SourceLatents]:
    first = batch[0]
    if first.kind == "generate":
        images = [(source.prompts, source.image_number) for source in batch]
        latents = host.models.generate(model, images, first.size, first.plan, progress.check, decoded=needs.images)
    else:
        invert_source = _invert_and_reconstruct if needs.reconstructions else _invert
        compute = {"tone": _estimate_tone, "image": invert_source}[first.kind]
        latents = [compute(host, model, first, known, progress)]
    progress.check()
    for source, z in zip(batch, latents, strict=True):
        log.info(*_message(host, source, len(z)))
    return latents


def _message(host: Host, source: Source, steps: int) -> tuple:
    name = source.checkpoint.name
    if source.kind == "generate":
        return "generated the source image (seed %s) with %s, %d steps", _seed(host, source), name, steps
    if source.kind == "tone":
        return "estimated the colours of %s", name
    settings = source.request.settings
    what = f"source image (seed {_seed(host, source)})" if source.parent else "content image"
    return ("inverted the %s (alpha %g, beta %g) with %s, %d steps", what, settings.alpha, settings.beta, name, steps)


def _seed(host: Host, source: Source) -> str:
    return host.job.generation_metadata(source.image_number)["seed"]


def _invert(host: Host, model: Model, source: Source, known: Mapping[str, SourceLatents], progress: Progress,
            ) -> SourceLatents:
    z0 = known[source.parent.key].z0 if source.parent and not source.needs_image else None
    if z0 is None:
        z0 = host.models.encode(model, source.content_pixels(known), source.latent_hw)
    return invert(_denoiser(host, model, source), z0.to(host.models.device), source.timesteps,
                  host.models.alphas_cumprod(model), progress.step)


def _invert_and_reconstruct(host: Host, model: Model, source: Source, known: Mapping[str, SourceLatents],
                            progress: Progress) -> SourceLatents:
    """Invert a source, then reconstruct its image from the latents with the same model and prompts."""
    latents, models = _invert(host, model, source, known, progress), host.models
    progress.end()
    progress.begin(len(source.timesteps), RECONSTRUCTING)
    z0 = sample_ddim(_denoiser(host, model, source), latents.latents[-1].to(models.device), source.timesteps,
                     models.alphas_cumprod(model), progress.step)
    return latents.with_image(models.decode(model, z0))


def _denoiser(host: Host, model: Model, source: Source) -> Denoiser:
    settings = source.request.settings
    return host.models.denoiser(model, source.prompts, settings.alpha, settings.beta, source.size, source.plan)


def _estimate_tone(host: Host, model: Model, source: Source, known: Mapping[str, SourceLatents], progress: Progress,
                   ) -> SourceLatents:
    timestep, = source.timesteps
    denoise = host.models.denoiser(model, source.prompts, 1.0, 0.0, source.size, source.plan)
    noise = torch.randn(1, CHANNELS, *source.latent_hw, generator=torch.Generator().manual_seed(SEED))
    return target_estimate(denoise, noise.to(host.models.device), timestep, host.models.alphas_cumprod(model))
