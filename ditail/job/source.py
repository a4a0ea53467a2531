"""Content sources of a job: one for each image, made once for all that are identical."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ..content.images import LATENT_SCALE, fit, image_to_tensor, tensor_to_images
from ..keys import cache_key
from ..method.latents import SourceLatents
from ..method.schedule import inversion_timesteps
from .host import Checkpoint, Host, Networks, Prompts, SamplingPlan
from .request import Request


@dataclass(frozen=True, eq=False)
class Source:
    """One source at one size: what its latents are made from, and the key under which they are cached.

    kind: "image" inverts `pixels` `[1, 3, H, W]` (None: what `parent` generated), "generate" samples from the seeds of
    the job's image number `image`, "tone" is the target's own estimate (see `method.tone`). vae_file: None for the
    checkpoint's own. networks: the extra networks of its prompt, which `prompts` is without. size: (width, height) in
    pixels. batch: the keys of the sources that are made at once with this one, in order.
    """

    kind: str
    request: Request
    checkpoint: Checkpoint
    vae_file: str | None
    prompts: Prompts
    networks: Networks
    size: tuple[int, int]
    plan: SamplingPlan
    image: int
    pixels: Tensor | None = None
    parent: "Source | None" = None
    key: str = ""
    batch: tuple[str, ...] = ()

    @property
    def latent_hw(self) -> tuple[int, int]:
        return self.size[1] // LATENT_SCALE, self.size[0] // LATENT_SCALE

    @property
    def timesteps(self) -> list[float]:
        """Where its model is called, ascending."""
        if self.kind == "image":
            return inversion_timesteps(self.plan.timesteps, self.request.settings.inversion_steps)
        return [self.plan.timesteps[-1]] if self.kind == "tone" else list(self.plan.timesteps)

    @property
    def origin(self) -> "Source":
        """The source whose image the content is: what generated it, or itself."""
        return self.parent or self

    @property
    def needs_image(self) -> bool:
        """Whether its parent's image is inverted, as that has another size, and not the latent."""
        return self.parent is not None and self.parent.size != self.size

    @property
    def needs(self) -> tuple:
        """What has to be in place to make it."""
        networks = {kind: [network.items for network in of_kind] for kind, of_kind in self.networks.items()}
        return self.checkpoint.path, self.vae_file or "", repr(networks)

    def depends_on(self, host: Host, pixels_key: str) -> dict:
        """All that the latents depend on, for the key."""
        settings = self.request.settings
        known = host.checkpoints.fingerprint(self.checkpoint, self.vae_file, self.prompts, self.networks)
        if self.kind == "tone":
            return {**known, "tone": [self.size, self.timesteps]}
        if self.kind == "image":
            at = {} if settings.inversion_steps == 1 else {"timesteps": self.timesteps}
            return {**known, "pixels": pixels_key,
                    "settings": [settings.alpha, settings.beta, self.size, self.plan.timesteps], **at}
        return {**known, "size": self.size, **host.job.generation_fingerprint(self.image)}

    def metadata(self, host: Host) -> dict[str, str]:
        """Metadata shown for a cache entry."""
        settings, (width, height) = self.request.settings, self.size
        vae = os.path.basename(self.vae_file) if self.vae_file else "the checkpoint's own"
        known = {"checkpoint": self.checkpoint.title, "vae": vae, "prompt": self.prompts[0],
                 "negative prompt": self.prompts[1], "size": f"{width}x{height}", "kind": self.kind}
        if self.kind == "tone":
            return known
        if self.kind == "image":
            return {**known, "alpha": f"{settings.alpha:g}", "beta": f"{settings.beta:g}"}
        return {**known, **host.job.generation_metadata(self.image)}

    def content_image(self, latents: Mapping[str, SourceLatents]) -> Image.Image:
        """The image that the content comes from, at the size of the sampling. latents: by source key."""
        if self.kind == "generate" or (self.parent and not self.needs_image):
            return _image_of(latents[self.origin.key])
        return tensor_to_images(self.content_pixels(latents))[0]

    def content_pixels(self, latents: Mapping[str, SourceLatents]) -> Tensor:
        """The pixels `[1, 3, H, W]` that are inverted. latents: by source key, the parent's among them."""
        if self.pixels is not None:
            return self.pixels
        if self.parent is None:
            raise ValueError("a source that is inverted needs pixels or a parent")
        image = _image_of(latents[self.parent.key])
        return image_to_tensor(fit(image, *self.size, self.request.settings.resize_mode))


def _image_of(generated: SourceLatents) -> Image.Image:
    if generated.image is None:
        raise ValueError("these source latents have no image")
    return Image.fromarray(generated.image.numpy())


def sources_of(host: Host, request: Request, size: tuple[int, int], plan: SamplingPlan, contents: Sequence[Tensor],
               parents: Sequence[Source] = ()) -> list[Source]:
    """The sources of one sampling, by image of the job.

    contents: the content images `[1, 3, H, W]`, which the images of the job take in turn; empty if they are generated.
    parents: the sources that generated what is inverted, by image of the job; they are made up here if there are none.
    """
    if not contents and not parents:
        generated = _sources(host, request, size, plan)
        if request.settings.source_latents == "kept":
            return generated
        parents = generated
    return _sources(host, request, size, plan, contents, parents)


def tones_of(host: Host, request: Request, size: tuple[int, int], plan: SamplingPlan) -> list[Source]:
    """The target's own estimates that a sampling's start takes its tone from, by image of the job; none without."""
    if not request.settings.tone or request.settings.start != "source":
        return []
    tones, target = [], host.checkpoints.target()
    vae_file = host.checkpoints.vae_file(target, "")
    for i, (text, _) in enumerate(host.job.prompts()):
        prompt, networks = host.checkpoints.parse_prompt(text)
        tone = Source("tone", request, target, vae_file, (prompt, ""), networks, size, plan, i)
        key = cache_key(tone.depends_on(host, ""))
        tones.append(replace(tone, key=key, batch=(key,)))
    return tones


def _sources(host: Host, request: Request, size: tuple[int, int], plan: SamplingPlan,
             contents: Sequence[Tensor] = (), parents: Sequence[Source] = ()) -> list[Source]:
    settings, checkpoint = request.settings, request.checkpoint or host.checkpoints.target()
    keeps_vae = checkpoint.path == host.checkpoints.target().path and not settings.source_vae
    vae_file = host.checkpoints.vae_file(checkpoint, "" if keeps_vae else request.vae)
    content_keys = [cache_key({"pixels": content}) for content in contents]
    sources = []
    for i, texts in enumerate(host.job.prompts()):
        prompt, networks = host.checkpoints.parse_prompt(settings.source_prompt or texts[0])
        source = Source("image" if contents or parents else "generate", request, checkpoint, vae_file,
                        (prompt, settings.source_negative_prompt or texts[1]), networks, size, plan, i)
        pixels_key = ""
        if parents:
            source, pixels_key = replace(source, parent=parents[i]), parents[i].key
        elif contents:
            source = replace(source, pixels=contents[i % len(contents)])
            pixels_key = content_keys[i % len(contents)]
        sources.append(replace(source, key=cache_key(source.depends_on(host, pixels_key))))
    return [_in_its_batch(source, sources[i - i % host.job.batch_size :][: host.job.batch_size])
            for i, source in enumerate(sources)]


def _in_its_batch(source: Source, mates: Sequence[Source]) -> Source:
    """A generated source with the others of its batch in its key: rounding differs with what is sampled at once."""
    if source.kind != "generate":
        return replace(source, batch=(source.key,))
    keys = list(dict.fromkeys(mate.key for mate in mates if mate.needs == source.needs))
    if len(keys) > 1:
        in_batch = {key: cache_key({"batch": keys, "place": place}) for place, key in enumerate(keys)}
        return replace(source, key=in_batch[source.key], batch=tuple(in_batch.values()))
    return replace(source, batch=tuple(keys))


def distinct(sources: Iterable[Source]) -> list[Source]:
    """One source for each key."""
    return list({source.key: source for source in sources}.values())


def batches_of(sources: Sequence[Source], target: Checkpoint) -> list[list[Source]]:
    """What is made at once, in the order that loads least: last what the target makes, which has to be in place next.

    Generated ones come before inverted ones, as their images may be inverted. A batch is given whole or not at all.
    """
    by_key = {source.key: source for source in sources}
    batches = dict.fromkeys(source.batch for source in sources)
    firsts = sorted((by_key[batch[0]] for batch in batches),
                    key=lambda s: (s.checkpoint.path == target.path, s.needs, s.kind != "generate"))
    return [[by_key[key] for key in first.batch] for first in firsts]


def stacked(sources: Sequence[SourceLatents]) -> SourceLatents:
    """Source latents of one row each as one of several rows, at the timesteps of the first."""
    first = sources[0]
    if len(sources) == 1:
        return first
    rows = [torch.cat([latents.at(t) for latents in sources]) for t in first.timesteps.tolist()]
    z0s = [latents.z0 for latents in sources if latents.z0 is not None]
    z0 = torch.cat(z0s) if len(z0s) == len(sources) else None
    return SourceLatents(first.timesteps.tolist(), torch.stack(rows), first.alphas_cumprod, z0=z0)
