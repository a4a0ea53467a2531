"""The samplings of a job: their content images and masks, and the source of each image."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageChops
from torch import Tensor

from ..content.collage import Part, compose
from ..content.images import fit, image_to_tensor, mask_to_latent, tensor_to_images
from ..content.settings import DitailSettings
from ..errors import DitailError
from ..method.blending import Share, WeightedSource, mix_over
from ..method.latents import SourceLatents
from .host import Host, Pass, SamplingPlan
from .request import FurtherRequest, Request
from .source import Source, distinct, sources_of, stack_latents, tones_of

WHITE = (255, 255)


@dataclass(frozen=True)
class FurtherSources:
    """A further source of a mix in one sampling. sources: one per image of the job."""

    share: Share
    sources: list[Source]


@dataclass(frozen=True)
class Sampling:
    """One sampling of a job, with the sources of its images.

    size: (width, height) in pixels. mask: see `Injection`. contents: the content images `[1, 3, H, W]`, assigned to
    the images of the job in turn; empty if they are generated. sources: one per image of the job. further: the sources
    mixed over them. tones: the estimates for the start's tone, one per image of the job.
    """

    hires: bool
    size: tuple[int, int]
    plan: SamplingPlan
    mask: Tensor | None
    contents: Sequence[Tensor]
    sources: list[Source]
    further: list[FurtherSources] = field(default_factory=list)
    tones: list[Source] = field(default_factory=list)

    @property
    def all_sources(self) -> list[Source]:
        """The distinct sources whose latents the sampling needs."""
        further = (source for further in self.further for source in further.sources)
        return distinct([*self.sources, *further, *self.tones])

    def weighted_sources(self, first: int, count: int, latents: Mapping[str, SourceLatents],
                         ) -> tuple[list[WeightedSource], list[int], list[str]]:
        """(sources for an `Injection` into `count` images from number `first` on, each image's row in their latents,
        cache keys of what the mix depends on). latents: by source key.

        Images with the same sources share a row.
        """
        columns = [self.sources, *(further.sources for further in self.further)]
        images = [tuple(column[i].key for column in columns)
                  for i in range(first, min(first + count, len(self.sources)))]
        rows = list(dict.fromkeys(images))
        stacked = [stack_latents([latents[row[k]] for row in rows]) for k in range(len(columns))]
        shares = [further.share for further in self.further]
        sources = mix_over(stacked[0], list(zip(stacked[1:], shares, strict=True)), self.plan.timesteps)
        keys = [key for row in rows for key in row]
        keys += [repr((share.weight, share.steps, share.mask is None)) for share in shares]
        return sources, [rows.index(image) for image in images], keys


def plan_job(host: Host, request: Request, init_images: Sequence[Tensor], *, is_plain: bool) -> dict[bool, Sampling]:
    """The samplings of the job that Ditail takes part in; the key is True for the hires pass.

    init_images: `[1, 3, H, W]` each, the content images if the request has none. is_plain: see `Job`. Raises
    DitailError if the request does not fit the job.
    """
    samplings: dict[bool, Sampling] = {}
    for a_pass in host.job.passes():
        if not _takes_part(a_pass, request.settings, is_plain=is_plain):
            continue
        plan = host.job.plan(hires=a_pass.hires)
        if plan is None:
            host.job.comment("Ditail: nothing to do, as the denoising strength leaves no step")
            continue
        # A generated source has no latents at the second pass's size, so its image is inverted there.
        parents = []
        if a_pass.hires and request.settings.source == "generate" and False in samplings:
            parents = [source.origin for source in samplings[False].sources]
        sampling = _plan_sampling(host, request, a_pass, plan, init_images, parents)
        samplings[a_pass.hires] = replace(sampling, tones=[]) if is_plain else sampling
    return samplings


def _takes_part(a_pass: Pass, settings: DitailSettings, *, is_plain: bool) -> bool:
    """Whether Ditail takes part in a pass.

    In a first pass that starts from a given image it does so only for a generated source, which the second one inverts.
    """
    if a_pass.hires:
        return settings.hires and not is_plain
    return a_pass.is_sampled or settings.source == "generate"


def _plan_sampling(host: Host, request: Request, a_pass: Pass, plan: SamplingPlan, init_images: Sequence[Tensor],
                   parents: Sequence[Source]) -> Sampling:
    settings, size = request.settings, a_pass.size
    mask = request.mask and fit(host.job.sampled_part(request.mask, settings.resize_mode), *size, settings.resize_mode)
    contents: Sequence[Tensor] = []
    if settings.source == "image":
        contents = _contents(host, request, size, init_images)
        if request.collage:
            contents, covered = _composed(request, contents, size, host.job.part)
            mask = ImageChops.multiply(mask, covered) if mask else covered
    # A mask that is white everywhere is dropped, as most shortcuts need a layer without a mask.
    latent_mask = mask_to_latent(mask, *size) if mask and mask.getextrema() != WHITE else None
    sources = sources_of(host, request, size, plan, contents, parents)
    further = [_further_sources(host, a_request, i, a_pass, plan, contents)
               for i, a_request in enumerate(request.further)]
    tones = [] if a_pass.hires else tones_of(host, request, size, plan)
    return Sampling(a_pass.hires, size, plan, latent_mask, contents, sources, further, tones)


def _contents(host: Host, request: Request, size: tuple[int, int], init_images: Sequence[Tensor]) -> Sequence[Tensor]:
    if request.image is not None:
        return [content_tensor(host, request.image, size, request.settings.resize_mode)]
    if not init_images and not request.collage:
        raise DitailError("image", "a content image is needed in txt2img")
    return init_images


def content_tensor(host: Host, image: Image.Image, size: tuple[int, int], resize_mode: str) -> Tensor:
    """A content image at the size of a sampling, `[1, 3, H, W]` in -1..1."""
    return image_to_tensor(fit(host.job.sampled_part(image, resize_mode), *size, resize_mode))


def _composed(request: Request, contents: Sequence[Tensor], size: tuple[int, int], part: Part | None,
              ) -> tuple[list[Tensor], Image.Image]:
    """(the collage over each content image, or without one; the mask of the area that it covers)."""
    backgrounds = [tensor_to_images(content)[0] for content in contents]
    composed = [compose(request.collage, *size, background, part) for background in backgrounds or (None,)]
    return [image_to_tensor(image) for image, _ in composed], composed[0][1]


def _further_sources(host: Host, further: FurtherRequest, number: int, a_pass: Pass, plan: SamplingPlan,
                     contents: Sequence[Tensor]) -> FurtherSources:
    """A further source of a mix; without an image of its own it inverts that of the first source, `contents`.

    number: its number among the further ones, from 0 on.
    """
    request, size, resize_mode = further.request, a_pass.size, further.request.settings.resize_mode
    if request.checkpoint is not None:
        host.checkpoints.check_family(request.checkpoint)
    if request.settings.source == "generate":
        if a_pass.hires:
            raise DitailError("sources", "none that is generated can be mixed in the hires pass; switch `hires` off")
        contents = []
    else:
        if request.image is not None:
            contents = [content_tensor(host, request.image, size, resize_mode)]
        if not contents:
            raise DitailError("sources", f"number {number + 1} needs an image, as the first is generated")
    mask = None
    if further.mask:
        mask = mask_to_latent(host.job.sampled_part(further.mask, resize_mode), *size, resize_mode)
    return FurtherSources(Share(further.weight, mask, further.steps), sources_of(host, request, size, plan, contents))


def image_hashes(request: Request, samplings: Mapping[bool, Sampling], init_images: Sequence[Tensor]) -> list[str]:
    """Hashes of the content images, which are assigned to a batch in turn; a single one if they are identical."""
    if request.settings.source == "generate":
        return []
    if request.image is not None and not request.collage:
        return [image_hash(request.image)]
    if request.collage:
        init_images = samplings[min(samplings)].contents if samplings else []
    hashes = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:10] for image in init_images]
    return hashes if len(set(hashes)) > 1 else hashes[:1]


def image_hash(image: Image.Image) -> str:
    """A hash of an image's size and RGB pixels, ten hex digits."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()[:10]
