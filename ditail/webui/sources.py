"""What the images of a job take their content from: one source for each, made once for all that are alike."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from modules import devices, extra_networks, sd_hijack, sd_vae, shared
from PIL import Image
from torch import Tensor

from ..images import LATENT_SCALE, fit, picture_to_tensor, tensor_to_pictures
from ..inversion import invert
from ..latents import SourceLatents, latents_key
from ..mixing import Mixed, Share, mix_over
from . import models
from .progress import Progress
from .request import Part, Request
from .sampling import SamplingPlan, record_generation

log = logging.getLogger("ditail")

TEXTS = {"image": "inverting the content image", "generate": "generating the source picture"}
DONE = {"image": "inverted the content image (%s) with %s, %d steps",
        "generate": "generated the source picture (seed %s) with %s, %d steps"}
# What a generated source depends on, besides its model and prompts.
SAMPLING_ATTRIBUTES = ("sampler_name", "scheduler", "steps", "cfg_scale", "subseed_strength", "seed_resize_from_h",
                       "seed_resize_from_w", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond")
SAMPLING_OPTIONS = ("eta_ancestral", "eta_ddim", "eta_noise_seed_delta", "randn_source", "sgm_noise_multiplier",
                    "always_discard_next_to_last_sigma", "sigma_min", "sigma_max", "rho", "skip_early_cond",
                    "no_dpmpp_sde_batch_determinism", "uni_pc_variant", "uni_pc_skip_type", "uni_pc_order",
                    "uni_pc_lower_order_final", "s_min_uncond_all", "beta_dist_alpha", "beta_dist_beta",
                    "enable_quantization", "use_old_karras_scheduler_sigmas", "pad_cond_uncond", "pad_cond_uncond_v0",
                    "batch_cond_uncond")


@dataclass(eq=False)
class Sampling:
    """One sampling of the job (hires: its second pass): `size` in pixels, what the sampler will do, and the sources.

    pictures: the content images `[1, 3, H, W]`, which the images of a batch take in turn; empty if it is generated.
    sources: by image of the job; what is alike shares one object. further: the same for each further source of a mix.
    """

    hires: bool
    size: tuple[int, int]
    plan: SamplingPlan
    mask: Tensor | None = None
    pictures: Sequence[Tensor] = ()
    sources: list["Source"] = field(default_factory=list)
    further: list["Further"] = field(default_factory=list)

    @property
    def latent_hw(self) -> tuple[int, int]:
        return self.size[1] // LATENT_SCALE, self.size[0] // LATENT_SCALE

    @property
    def all_sources(self) -> list["Source"]:
        return distinct([*self.sources, *(source for further in self.further for source in further.sources)])

    def mixed(self, first: int, count: int, latents: Mapping[str, SourceLatents],
              ) -> tuple[list[Mixed], list[int], list[str]]:
        """What is mixed for `count` images from number `first` on, for each of these its row in the latents, and what
        the mix depends on. latents: by source key."""
        columns = [self.sources, *(further.sources for further in self.further)]
        images = [tuple(column[i].key for column in columns)
                  for i in range(first, min(first + count, len(self.sources)))]
        rows = list(dict.fromkeys(images))
        parts = [stacked([latents[row[k]] for row in rows]) for k in range(len(columns))]
        shares = [Share(f.part.weight, f.mask, f.part.steps) for f in self.further]
        mixed = mix_over(parts[0], list(zip(parts[1:], shares, strict=True)), self.plan.timesteps)
        keys = [key for row in rows for key in row]
        keys += [repr((share.weight, share.steps, share.mask is None)) for share in shares]
        return mixed, [rows.index(image) for image in images], keys


@dataclass(eq=False)
class Further:
    """A further source of a mix in one sampling: its sources by image of the job, and its mask for the latents."""

    part: Part
    sources: list["Source"]
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Source:
    """One source at one size: what its latents are made from, and the key under which they are cached.

    kind: "image" inverts `pixels` `[1, 3, H, W]` (None: the picture of `parent`), "generate" samples from the seeds of
    the job's image number `image`. vae_file: None for the checkpoint's own. networks: the extra networks of its prompt,
    which `prompts` is without. batch: the keys of the sources that are made at once with this one, in order.
    """

    kind: str
    request: Request
    checkpoint: object
    vae_file: str | None
    prompts: tuple[str, str]
    networks: dict
    sampling: Sampling
    image: int
    pixels: Tensor | None = None
    parent: "Source | None" = None
    key: str = ""
    batch: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple:
        """What has to be in place to make it."""
        networks = {kind: [network.items for network in found] for kind, found in self.networks.items()}
        return self.checkpoint.filename, self.vae_file or "", repr(networks)

    def depends_on(self, p, pixels_key: str) -> dict:
        settings, made = self.request.settings, self.sampling
        known = models.fingerprint(p, self.checkpoint, self.vae_file, self.prompts, self.networks)
        if self.kind == "image":
            return {**known, "pixels": pixels_key,
                    "settings": [settings.alpha, settings.beta, made.size, made.plan.timesteps]}
        named = {name: getattr(p, name, None) for name in SAMPLING_ATTRIBUTES}
        options = {name: getattr(shared.opts, name, None) for name in SAMPLING_OPTIONS}
        seeds = [p.all_seeds[self.image], p.all_subseeds[self.image] if p.subseed_strength else None]
        return {**known, "generate": {**named, **options}, "seeds": seeds, "size": made.size}

    def metadata(self, p) -> dict[str, str]:
        """What a person wants to know of the entry in a cache."""
        settings, (width, height) = self.request.settings, self.sampling.size
        vae = os.path.basename(self.vae_file) if self.vae_file else "the checkpoint's own"
        known = {"checkpoint": self.checkpoint.title, "vae": vae, "prompt": self.prompts[0],
                 "negative prompt": self.prompts[1], "size": f"{width}x{height}", "kind": self.kind}
        if self.kind == "image":
            return {**known, "alpha": f"{settings.alpha:g}", "beta": f"{settings.beta:g}"}
        return {**known, "seed": str(p.all_seeds[self.image]), "sampler": str(p.sampler_name), "steps": str(p.steps)}


def sources_of(p, request: Request, sampling: Sampling, pictures: Sequence[Tensor],
               parents: Sequence[Source] | None = None) -> list[Source]:
    """The sources of one sampling, by image of the job `p`; what is alike is one object.

    pictures: the content images `[1, 3, H, W]`, which the images take in turn; empty if they are generated.
    parents: the generated sources whose pictures are inverted, by image.
    """
    settings, target = request.settings, shared.sd_model.sd_checkpoint_info
    info = request.checkpoint or target
    keeps_vae = info.filename == target.filename and not settings.source_vae
    vae_file = sd_vae.loaded_vae_file if keeps_vae else models.vae_file_of(info, request.vae)
    pixel_keys = [latents_key({"pixels": picture}) for picture in pictures]
    by_image = []
    for i, texts in enumerate(zip(p.all_prompts, p.all_negative_prompts, strict=True)):
        prompt, networks = extra_networks.parse_prompt(settings.source_prompt or texts[0])
        source = Source("image" if pictures or parents else "generate", request, info, vae_file,
                        (prompt, settings.source_negative_prompt or texts[1]), networks, sampling, i)
        pixels_key = ""
        if parents:
            source, pixels_key = replace(source, parent=parents[i]), parents[i].key
        elif pictures:
            source = replace(source, pixels=pictures[i % len(pictures)])
            pixels_key = pixel_keys[i % len(pictures)]
        by_image.append(replace(source, key=latents_key(source.depends_on(p, pixels_key))))
    return [_in_its_batch(source, by_image[i - i % p.batch_size :][: p.batch_size])
            for i, source in enumerate(by_image)]


def _in_its_batch(source: Source, mates: Sequence[Source]) -> Source:
    """A generated source with the others of its batch in its key: rounding differs with what is sampled at once."""
    if source.kind == "image":
        return replace(source, batch=(source.key,))
    keys = list(dict.fromkeys(mate.key for mate in mates if mate.needs == source.needs))
    if len(keys) > 1:
        keys = {key: latents_key({"batch": keys, "place": place}) for place, key in enumerate(keys)}
        return replace(source, key=keys[source.key], batch=tuple(keys.values()))
    return replace(source, batch=tuple(keys))


def distinct(sources: Iterable[Source]) -> list[Source]:
    """One source for each key."""
    return list({source.key: source for source in sources}.values())


def batches_of(sources: Sequence[Source]) -> list[list[Source]]:
    """What is made at once, in the order that loads least: first what the target makes, while it is still in place.

    Generated ones come before inverted ones, as their pictures may be inverted. A batch is given whole or not at all.
    """
    target = shared.sd_model.sd_checkpoint_info.filename
    by_key = {source.key: source for source in sources}
    batches = dict.fromkeys(source.batch for source in sources)
    firsts = sorted((by_key[batch[0]] for batch in batches),
                    key=lambda s: (s.checkpoint.filename != target, s.needs, s.kind == "image"))
    return [[by_key[key] for key in first.batch] for first in firsts]


def make(p, batches: Sequence[list[Source]], known: Mapping[str, SourceLatents], job: Progress, borrow: Callable,
         ) -> Iterator[tuple[Source, SourceLatents]]:
    """Make the latents of sources; yields each with its latents when they are complete.

    known: latents by key that are there already, for sources whose parents are not made here. borrow:
    `models.borrowed_models`' function that puts a checkpoint with its VAE in place.
    """
    made = dict(known)
    for _, group in groupby(batches, lambda batch: batch[0].needs):
        alike = list(group)
        first, count = alike[0][0], sum(map(len, alike))
        job.show(f"loading {first.checkpoint.name_for_extra}")
        model = borrow(first.checkpoint, first.vae_file, f"{TEXTS[first.kind]} ({count} in all)")
        with models.active_extra_networks(p, first.networks):
            for comment in sd_hijack.model_hijack.comments:
                p.comment(f"{comment} (source prompt)")
            sd_hijack.model_hijack.clear_comments()
            for batch in alike:
                job.begin(len(batch[0].sampling.plan.timesteps), TEXTS[batch[0].kind])
                latents = _make_batch(p, model, batch, made, job)
                job.end()
                made |= {source.key: one for source, one in zip(batch, latents, strict=True)}
                yield from zip(batch, latents, strict=True)


def _make_batch(p, model, batch: list[Source], known: Mapping[str, SourceLatents], job: Progress,
                ) -> list[SourceLatents]:
    first = batch[0]
    with devices.without_autocast() if devices.unet_needs_upcast else devices.autocast():
        if first.kind == "generate":
            decoded = first.request.settings.show_source or getattr(p, "enable_hr", False)
            made = record_generation(p, model, [(s.prompts, s.image) for s in batch], first.sampling.size,
                                     first.sampling.plan, job.check, decoded=decoded)
        else:
            made = [_invert(model, first, known, job)]
    job.check()
    for source, latents in zip(batch, made, strict=True):
        log.info(DONE[source.kind], p.all_seeds[source.image] if source.kind == "generate" else
                 f"alpha {source.request.settings.alpha:g}, beta {source.request.settings.beta:g}",
                 source.checkpoint.name_for_extra, len(latents))
    return made


def _invert(model, source: Source, known: Mapping[str, SourceLatents], job: Progress) -> SourceLatents:
    settings, made = source.request.settings, source.sampling
    pixels = source.pixels
    if pixels is None:
        picture = Image.fromarray(known[source.parent.key].picture.numpy())
        pixels = picture_to_tensor(fit(picture, *made.size, settings.resize_mode))
    z0 = models.encode(model, pixels, made.latent_hw)
    denoise = models.source_denoiser(model, source.prompts, settings.alpha, settings.beta, made.size,
                                     made.plan.timesteps)
    return invert(denoise, z0, made.plan.timesteps, model.alphas_cumprod.float().cpu(), job.progress)


def stacked(sources: Sequence[SourceLatents]) -> SourceLatents:
    """Source latents of one row each as one of several rows, at the timesteps of the first."""
    first = sources[0]
    if len(sources) == 1:
        return first
    rows = [torch.cat([latents.at(t) for latents in sources]) for t in first.timesteps.tolist()]
    return SourceLatents(first.timesteps.tolist(), torch.stack(rows), first.alphas_cumprod)


def picture_of(source: Source, latents: Mapping[str, SourceLatents]) -> Image.Image:
    """The picture that the content comes from, at the size of the sampling. latents: by source key."""
    if source.kind == "generate":
        return Image.fromarray(latents[source.key].picture.numpy())
    return tensor_to_pictures(source.pixels)[0]
