"""Content sources of a job, one per image; identical sources share one key and are computed once."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

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
    """One source at one size: what its latents are computed from, and the key under which they are cached.

    kind: "image" inverts `pixels` `[1, 3, H, W]` (None: the image that `parent` generated), "generate" samples with the
    seeds of the job's image number `image_number`, "tone" is the target's estimate (see `method.tone`). vae_file: None
    for the checkpoint's own. networks: the extra networks of its prompt; `prompts` has no tags. size: (width, height)
    in pixels. batch_keys: of the sources that are computed in one batch, including this one, in order.
    """

    kind: str
    request: Request
    checkpoint: Checkpoint
    vae_file: str | None
    prompts: Prompts
    networks: Networks
    size: tuple[int, int]
    plan: SamplingPlan
    image_number: int
    pixels: Tensor | None = None
    parent: "Source | None" = None
    key: str = ""
    batch_keys: tuple[str, ...] = ()

    @property
    def latent_hw(self) -> tuple[int, int]:
        return self.size[1] // LATENT_SCALE, self.size[0] // LATENT_SCALE

    @property
    def timesteps(self) -> list[float]:
        """The timesteps at which its model is called, ascending."""
        if self.kind == "image":
            return inversion_timesteps(self.plan.timesteps, self.request.settings.inversion_steps)
        return [self.plan.start] if self.kind == "tone" else list(self.plan.timesteps)

    @property
    def origin(self) -> "Source":
        """The source that the content image comes from: the parent, or itself."""
        return self.parent or self

    @property
    def needs_image(self) -> bool:
        """Whether it inverts its parent's image, because the parent's latent has another size."""
        return self.parent is not None and self.parent.size != self.size

    @property
    def model_key(self) -> tuple:
        """(checkpoint, VAE, extra networks) that have to be loaded to compute it."""
        networks = {kind: [network.items for network in of_kind] for kind, of_kind in self.networks.items()}
        return self.checkpoint.path, self.vae_file or "", repr(networks)

    def depends_on(self, host: Host, pixels_key: str) -> dict:
        """Everything that the latents depend on, for the key."""
        settings = self.request.settings
        model = host.checkpoints.fingerprint(self.checkpoint, self.vae_file, self.prompts, self.networks)
        if self.kind == "tone":
            return {**model, "tone": [self.size, self.timesteps]}
        if self.kind == "image":
            at = {} if settings.inversion_steps == 1 else {"timesteps": self.timesteps}
            fit_as = {"resize_mode": settings.resize_mode} if self.needs_image else {}
            steps = self.plan.prompt_steps if any("[" in prompt for prompt in self.prompts) else None
            edits = {"prompt_steps": astuple(steps)} if steps else {}
            return {**model, "pixels": pixels_key, **edits,
                    "settings": [settings.alpha, settings.beta, self.size, self.plan.timesteps], **at, **fit_as}
        return {**model, "size": self.size, **host.job.generation_fingerprint(self.image_number)}

    def metadata(self, host: Host) -> dict[str, str]:
        """Metadata shown for a cache entry."""
        settings, (width, height) = self.request.settings, self.size
        vae = os.path.basename(self.vae_file) if self.vae_file else "the checkpoint's own"
        entries = {"checkpoint": self.checkpoint.title, "vae": vae, "prompt": self.prompts[0],
                   "negative prompt": self.prompts[1], "size": f"{width}x{height}", "kind": self.kind}
        if self.kind == "tone":
            return entries
        if self.kind == "image":
            return {**entries, "alpha": f"{settings.alpha:g}", "beta": f"{settings.beta:g}"}
        return {**entries, **host.job.generation_metadata(self.image_number)}

    def content_image(self, latents: Mapping[str, SourceLatents]) -> Image.Image:
        """The content image, at the size of the sampling. latents: by source key."""
        if self.kind == "generate" or (self.parent and not self.needs_image):
            return _image_of(latents[self.origin.key])
        image = tensor_to_images(self.content_pixels(latents))[0]
        # img2img's "latent upscale" resizes the latent instead.
        return image if image.size == self.size else fit(image, *self.size, "stretch")

    def content_pixels(self, latents: Mapping[str, SourceLatents]) -> Tensor:
        """The pixels `[1, 3, H, W]` to invert. latents: by source key, including the parent's."""
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

    contents: the content images `[1, 3, H, W]`, assigned to the images of the job in turn; empty if they are generated.
    parents: the sources whose generated images are inverted, by image of the job; if empty, they are created here.
    """
    if not contents and not parents:
        generated = _sources(host, request, size, plan)
        if request.settings.source_latents == "kept":
            return generated
        parents = generated
    return _sources(host, request, size, plan, contents, parents)


def tones_of(host: Host, request: Request, size: tuple[int, int], plan: SamplingPlan) -> list[Source]:
    """The target's estimates for a start with tone, by image of the job; empty if the settings have no tone."""
    if not request.settings.tone or request.settings.start != "source":
        return []
    tones, target = [], host.checkpoints.target()
    vae_file = host.checkpoints.vae_file(target, "")
    for i, (text, _) in enumerate(host.job.prompts()):
        prompt, networks = host.checkpoints.parse_prompt(text)
        tone = Source("tone", request, target, vae_file, (prompt, ""), networks, size, plan, i)
        key = cache_key(tone.depends_on(host, ""))
        tones.append(replace(tone, key=key, batch_keys=(key,)))
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
    return [_with_batch(source, sources[i - i % host.job.batch_size :][: host.job.batch_size])
            for i, source in enumerate(sources)]


def _with_batch(source: Source, batch: Sequence[Source]) -> Source:
    """A generated source with the others of its batch in its key, as rounding depends on the batch."""
    if source.kind != "generate":
        return replace(source, batch_keys=(source.key,))
    keys = list(dict.fromkeys(other.key for other in batch if other.model_key == source.model_key))
    if len(keys) > 1:
        in_batch = {key: cache_key({"batch": keys, "place": place}) for place, key in enumerate(keys)}
        return replace(source, key=in_batch[source.key], batch_keys=tuple(in_batch.values()))
    return replace(source, batch_keys=tuple(keys))


def distinct(sources: Iterable[Source]) -> list[Source]:
    """One source for each key."""
    return list({source.key: source for source in sources}.values())


def batches_of(sources: Sequence[Source], target: Checkpoint) -> list[list[Source]]:
    """The sources in batches, in an order that loads each model once and the target last, as it is needed next.

    Generated sources come before inverted ones, which may invert their images. `sources` must have all of a batch.
    """
    by_key = {source.key: source for source in sources}
    batches = dict.fromkeys(source.batch_keys for source in sources)
    firsts = sorted((by_key[keys[0]] for keys in batches),
                    key=lambda s: (s.checkpoint.path == target.path, s.model_key, s.kind != "generate"))
    return [[by_key[key] for key in first.batch_keys] for first in firsts]


def stack_latents(sources: Sequence[SourceLatents]) -> SourceLatents:
    """Source latents of one row each as one object of several rows, at the timesteps of the first."""
    first = sources[0]
    if len(sources) == 1:
        return first
    rows = [torch.cat([latents.at(t) for latents in sources]) for t in first.timesteps.tolist()]
    z0s = [latents.z0 for latents in sources if latents.z0 is not None]
    z0 = torch.cat(z0s) if len(z0s) == len(sources) else None
    return SourceLatents(first.timesteps.tolist(), torch.stack(rows), first.alphas_cumprod, z0=z0)
