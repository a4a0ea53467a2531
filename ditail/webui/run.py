"""One job of the WebUI with Ditail switched on: the source pass, then injection while it samples.

The WebUI logs what a script callback raises and goes on without the script, so a failure there would end in a plain
picture. The work is therefore done in two methods of the job itself that the WebUI does not guard: `init` (once per
job, before sampling) and `sample` (once per batch), which are replaced on the instance.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps

import torch
from modules import images, processing, sd_unet, shared
from PIL import Image, ImageChops
from torch import Tensor, nn

from ..collage import compose
from ..errors import DitailError
from ..images import LATENT_SCALE, fit, mask_to_latent, picture_to_tensor, tensor_to_pictures
from ..injection import inject
from ..latents import SourceLatents
from ..layers import parse_layers
from ..mixing import Mixed, start_latent
from ..savings import Savings, is_untouched
from ..schedule import InjectionSteps
from ..settings import warnings_of
from ..sites import find_sites
from . import caches, models, neighbours
from .failures import errors_for_the_user
from .infotext import IMAGE_HASH, infotext_of, picture_hash, source_infotext
from .progress import Interrupted, source_job
from .request import Part, Request
from .sampling import Recorder, plan_sampling
from .sources import Further, Sampling, Source, batches_of, distinct, make, picture_of, sources_of

RUN = "_ditail_run"
ORIGINAL = "_ditail_original"
# Set on a job by the matrix: see `Run.plain`.
PLAIN = "_ditail_plain"


class Run:
    """Ditail in one processing job `p`.

    sweep: further settings of which later jobs will need the sources; what needs the same loading is made along.
    plain: make the sources with the target itself and leave the sampling alone, but for noting what it passes through
    where the source is generated (the diagonal of a matrix).
    """

    def __init__(self, p, request: Request | None, error: DitailError | None = None, *,
                 sweep: Sequence[Request] = (), plain: bool = False):
        self.p = p
        self.request = request
        self.error: Exception | None = error
        self.sweep, self.plain = sweep, plain
        self.samplings: dict[bool, Sampling] = {}
        self.latents: dict[str, SourceLatents] = {}
        self.recorder: Recorder | None = None
        self._hooks = ExitStack()
        self._hooked: nn.Module | None = None
        self._rows: list[int] = []
        self._is_attached = False

    def install(self) -> None:
        """Take over `init` and `sample` of the job."""
        setattr(self.p, RUN, self)
        for name, method in (("init", Run._init), ("sample", Run._sample)):
            _replace(self.p, name, method)

    def _init(self, original, *args, **kwargs) -> None:
        with errors_for_the_user(self.p):
            if self.error:
                raise self.error
            with _recorded_pixels() as seen:
                original(*args, **kwargs)
            self._prepare(seen)

    def _sample(self, original, *args, **kwargs) -> Tensor:
        with errors_for_the_user(self.p):
            self._is_attached = False
            self._renew_sampler()
            try:
                samples = original(*args, **kwargs)
            finally:
                self.detach()
            if self.error:
                raise self.error
            if not self._is_attached and not shared.state.interrupted:
                raise DitailError("enabled: a script that samples in its own way (img2img alternative, say) leaves "
                                  "Ditail nothing to follow; switch one of the two off", "enabled")
            self._keep_recording()
            return samples

    def _prepare(self, seen: list[Tensor]) -> None:
        """The source pass: source latents for every sampling of the job, from the cache or by making them."""
        p, request = self.p, self.request
        caches.apply_settings()
        if sd_unet.get_unet_option() is not None:
            raise DitailError(f'sd_unet: "{shared.opts.sd_unet}" has no layers to inject into; set SD Unet to None',
                               "sd_unet")
        sd_unet.apply_unet()  # an earlier job's would answer in the source pass
        models.check_architecture(request.checkpoint or shared.sd_model.sd_checkpoint_info,
                                  shared.sd_model.model.diffusion_model)
        find_sites(shared.sd_model.model.diffusion_model, parse_layers(request.settings.layers))
        if not self.plain:
            settings = request.settings
            for sentence in warnings_of(alpha=settings.alpha, beta=settings.beta, cfg_scale=p.cfg_scale):
                p.comment(f"Ditail: {sentence}")
            self._without_token_merging()
        self._plan([row[None] for row in seen[0]] if seen else [])
        todo = self._missing(distinct(s for sampling in self.samplings.values() for s in sampling.all_sources))
        if todo and self._can_record():
            self.recorder, todo = Recorder(self.samplings[False].plan), []
        try:
            if todo:
                self._source_pass(todo + self._along(todo))
        except Interrupted:
            # Skip would go on with the next picture, and that would be a plain one: both end the job.
            shared.state.interrupted = True
            return
        if not self.plain:
            # Not in place: a script's own job (ADetailer's) may share the dict with the job that it is part of.
            p.extra_generation_params = {**p.extra_generation_params,
                                         **infotext_of(request, self._picture_hashes(seen))}

    def _missing(self, sources: Sequence[Source]) -> list[Source]:
        """Those that have to be made; the latents of the others are taken from the cache."""
        cached = {source.key: caches.LATENTS.get(source.key) for source in sources}
        parents = {source.parent.key for source in sources if source.parent and cached[source.key] is None}
        for source in sources:
            latents = cached[source.key]
            needs_picture = source.kind == "generate" and (self.request.settings.show_source or source.key in parents)
            if latents is not None and not (needs_picture and latents.picture is None):
                self.latents[source.key] = latents
        # A batch is made whole, since rounding differs with what is sampled at once.
        incomplete = {key for source in sources if source.key not in self.latents for key in source.batch}
        return [source for source in sources if source.key in incomplete]

    def _can_record(self) -> bool:
        """Whether the job's own sampling is the generation of its source, and nothing but the latents is needed."""
        p, settings, model = self.p, self.request.settings, shared.sd_model
        return (self.plain and settings.source == "generate" and not settings.show_source
                and not hasattr(p, "init_images") and not getattr(p, "enable_hr", False)
                and not models.merges_tokens(model) and is_untouched(model.model.diffusion_model))

    def _along(self, todo: Sequence[Source]) -> list[Source]:
        """Sources of the sweep's other cells, made along where a model has to be loaded anyway."""
        loaded = shared.sd_model.sd_checkpoint_info.filename
        if all(source.checkpoint.filename == loaded for source in todo):
            return []
        known = {source.key for source in todo}
        further = [source for request in self.sweep for sampling in self.samplings.values()
                   for source in sources_of(self.p, request, sampling, sampling.pictures)]
        further = [s for s in distinct(further) if s.key not in known and caches.LATENTS.get(s.key) is None]
        height, width = todo[0].sampling.latent_hw
        one = 16 * height * width * len(todo[0].sampling.plan.timesteps)
        return further[: max(0, caches.LATENTS.budget // one - len(todo))]

    def _plan(self, pictures: Sequence[Tensor]) -> None:
        p, settings, first = self.p, self.request.settings, None
        generated = settings.source == "generate"
        if generated or not getattr(p, "txt2img_upscale", False):
            first = self._add_sampling(False, (p.width, p.height), pictures)
        if getattr(p, "enable_hr", False) and settings.hires and not self.plain:
            width = p.hr_upscale_to_x - p.truncate_x * LATENT_SCALE
            height = p.hr_upscale_to_y - p.truncate_y * LATENT_SCALE
            # A generated source has no latents at the second pass's size: its picture is inverted there.
            self._add_sampling(True, (width, height), pictures, first.sources if generated and first else None)

    def _add_sampling(self, hires: bool, size: tuple[int, int], pictures: Sequence[Tensor],
                      parents: Sequence[Source] | None = None) -> Sampling | None:
        request, plan = self.request, plan_sampling(self.p, hires=hires)
        if plan is None:
            self.p.comment("Ditail: nothing to do, as the denoising strength leaves no step")
            return None
        made = Sampling(hires, size, plan)
        mask = request.mask and fit(self._framed(request.mask), *size, request.settings.resize_mode)
        if request.settings.source == "image":
            if request.image is not None:
                pictures = [picture_to_tensor(fit(self._framed(request.image), *size, request.settings.resize_mode))]
            elif not pictures and not request.collage:
                raise DitailError("image: a content image is needed in txt2img", "image")
            if request.collage:
                pictures, covered = self._composed(pictures, size)
                mask = ImageChops.multiply(mask, covered) if mask else covered
            made.pictures = pictures
        # White everywhere is none: masks cost the shortcuts that take a layer as a whole.
        made.mask = mask_to_latent(mask, *size) if mask and mask.getextrema() != (255, 255) else None
        made.sources = sources_of(self.p, request, made, made.pictures, parents)
        made.further = [self._further(part, made, i) for i, part in enumerate(request.further)]
        self.samplings[hires] = made
        return made

    def _further(self, part: Part, sampling: Sampling, number: int) -> Further:
        """A further source of a mix; one to be inverted without a picture of its own takes the first one's."""
        request, (width, height) = part.request, sampling.size
        if request.checkpoint is not None:
            models.check_architecture(request.checkpoint, shared.sd_model.model.diffusion_model)
        pictures, mask = [], None
        if request.settings.source == "image":
            pictures = sampling.pictures
            if request.image is not None:
                fitted = fit(self._framed(request.image), width, height, request.settings.resize_mode)
                pictures = [picture_to_tensor(fitted)]
            if not pictures:
                raise DitailError(f"sources: number {number + 1} needs an image, as the first is generated", "sources")
        elif sampling.hires:
            raise DitailError("sources: none that is generated can be mixed in the hires pass; switch `hires` off",
                              "sources")
        if part.mask:
            mask = mask_to_latent(self._framed(part.mask), width, height, request.settings.resize_mode)
        return Further(part, sources_of(self.p, request, sampling, pictures), mask)

    def _composed(self, grounds: Sequence[Tensor], size: tuple[int, int]) -> tuple[list[Tensor], Image.Image]:
        """The collage over each content picture (or over none), and the mask of where its pieces lie."""
        made = [compose(self.request.collage, *size, ground) for ground in
                ([tensor_to_pictures(ground)[0] for ground in grounds] or [None])]
        return [picture_to_tensor(picture) for picture, _ in made], made[0][1]

    def _framed(self, image: Image.Image) -> Image.Image:
        """What inpainting "only masked" sees of a picture that lies over the whole init image."""
        if getattr(self.p, "paste_to", None) is None:
            return image
        x, y, width, height = self.p.paste_to
        whole = fit(image, *self.p.init_images[0].size, self.request.settings.resize_mode)
        return whole.crop((x, y, x + width, y + height))

    def _picture_hashes(self, seen: list[Tensor]) -> list[str]:
        """By image of a batch; one if they are alike."""
        if self.request.settings.source == "generate":
            return []
        if self.request.image is not None and not self.request.collage:
            return [picture_hash(self.request.image)]
        if self.request.collage:
            seen = [torch.cat(list(self.samplings[min(self.samplings)].pictures))] if self.samplings else []
        found = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:10] for row in (seen[0] if seen else [])]
        return found if len(set(found)) > 1 else found[:1]

    def _source_pass(self, todo: list[Source]) -> None:
        p, batches = self.p, batches_of(todo)
        model_before = shared.sd_model
        target_steps = [sampling.plan.steps for sampling in self.samplings.values()]
        source_steps = [len(batch[0].sampling.plan.timesteps) for batch in batches]
        with (source_job(p, target_steps, source_steps) as job, torch.random.fork_rng(),
              models.untouched_prompt_notes(), neighbours.without_controlnet(p), models.whole_attention(p),
              models.borrowed_models(p) as borrow):
            for source, latents in make(p, batches, self.latents, job, borrow):
                self.latents[source.key] = latents
                caches.LATENTS.put(source.key, latents, source.metadata(p))
        if shared.sd_model is not model_before:
            neighbours.hook_controlnet_again(p)

    def _renew_sampler(self) -> None:
        """img2img makes its sampler in `init`; a source pass, or a script's own job, may have loaded models since."""
        sampler = self.p.sampler
        if sampler and getattr(sampler.model_wrap_cfg.inner_model, "inner_model", None) is not shared.sd_model:
            self.p.sampler = models.sampler_for(self.p)

    def attach(self, x: Tensor, noise: Tensor) -> None:
        """Called with the tensors that the sampler is about to read: hook the U-Net and set where sampling starts."""
        try:
            self._is_attached = True
            sampling = self.samplings.get(bool(self.p.is_hr_pass))
            self.detach()
            if self.recorder:
                self.recorder.attach(self.p.sampler)
            if sampling is None or self.plain:
                return
            self._hook(sampling)
            if self.request.settings.start == "source" and not sampling.hires:
                mixed, order, _ = self._mixed(sampling)
                sampling.plan.start_from(start_latent(mixed, sampling.plan.timesteps[-1])[order], x, noise)
        except Exception as error:
            self.error = error
            self.p.sampler.sample = self.p.sampler.sample_img2img = _raiser(error)

    def _mixed(self, sampling: Sampling) -> tuple[list[Mixed], list[int], list[str]]:
        return sampling.mixed(self.p.iteration * self.p.batch_size, self.p.batch_size, self.latents)

    def _of_batch(self, sampling: Sampling) -> list[Source]:
        """The sources of the images that are sampled now."""
        first = self.p.iteration * self.p.batch_size
        return sampling.sources[first : first + self.p.batch_size]

    def follow(self, denoiser) -> None:
        """Called at each step: which image each row is of, and a refiner may have put another model in place."""
        if self._hooked is None:
            return
        try:
            prompts = [len(composed) for composed in denoiser.sampler.sampler_extra_args["cond"].batch]
            # The WebUI's order, in one call or more: each image's prompts (several for AND), the unconditional rows.
            self._rows = [i for i, count in enumerate(prompts) for _ in range(count)] + list(range(len(prompts)))
            if shared.sd_model.model.diffusion_model is not self._hooked:
                self._hook(self.samplings[bool(self.p.is_hr_pass)])
        except Exception as error:
            self.error = error
            shared.state.interrupted = True

    def _hook(self, sampling: Sampling) -> None:
        self._without_token_merging()
        model, settings = shared.sd_model, self.request.settings
        mixed, order, keys = self._mixed(sampling)

        def row_images(count: int) -> list[int]:
            taken, self._rows = self._rows[:count], self._rows[count:]
            return [order[image] for image in taken]

        steps = InjectionSteps.from_ratios(sampling.plan.timesteps, settings.conv_ratio, settings.attn_ratio,
                                           parse_layers(settings.layers))
        neighbours.check_controlnet(self.p, steps)
        unet, null = model.model.diffusion_model, models.null_conditioning(model, sampling.size)
        features = caches.features_for(self.p, keys, null, sampling.size)
        self._hooks.enter_context(inject(unet, neighbours.InjectionBesideControlNet(
            mixed, null, steps, sampling.mask, row_images, Savings(upcast_attention=shared.opts.upcast_attn),
            features=features, p=self.p)))
        self._hooked = unet

    def _keep_recording(self) -> None:
        """Keep what the job's own sampling passed through as its sources' latents, if it came to its end."""
        sources = self._of_batch(self.samplings[False]) if self.recorder else []
        # Only of a batch that is what the source pass would have sampled at once.
        if self.recorder and self.recorder.is_complete and [s.key for s in sources] == list(sources[0].batch):
            made = self.recorder.latents(shared.sd_model.alphas_cumprod)
            for source, latents in zip(sources, made, strict=True):
                caches.LATENTS.put(source.key, latents, source.metadata(self.p))

    def _without_token_merging(self) -> None:
        """Merged tokens are other ones in the source than in the picture, so q and k would not fit; nor would tiles."""
        models.without_hypertile(self.p)
        models.without_token_merging(self.p)

    def detach(self) -> None:
        """Take the hooks off every U-Net that has them."""
        self._hooked = None
        self._hooks.close()

    def show_sources(self, processed) -> None:
        """Add the pictures that the content came from to a finished job's, each with its infotext."""
        sampling = self.samplings.get(False)
        if not self.request or not self.request.settings.show_source or sampling is None or self.plain:
            return
        for source in distinct(sampling.sources):
            if source.kind == "generate" and source.key not in self.latents:
                continue  # interrupted
            picture, text = picture_of(source, self.latents), self._infotext_of(source)
            picture.info["parameters"] = text
            processed.images.append(picture)
            processed.infotexts.append(text)
            if self.p.save_samples():
                images.save_image(picture, self.p.outpath_samples, "", self.p.all_seeds[source.image],
                                  source.prompts[0], shared.opts.samples_format, info=text, p=self.p,
                                  suffix="-ditail-source")

    def _infotext_of(self, source: Source) -> str:
        if source.kind == "image":
            return f"Content image of Ditail, {IMAGE_HASH}: {picture_hash(picture_of(source, self.latents))}"
        settings, image = self.request.settings, source.image
        return source_infotext(self.p, source.checkpoint, (settings.source_prompt or self.p.all_prompts[image],
                                                           source.prompts[1]), image)


def release(p, processed=None) -> None:
    """Give a job back its own methods and take its hooks off; nothing happens for a job without Ditail.

    processed: the finished job's pictures, to which the source's are added. A script may copy a job or run it twice,
    so this also undoes what came along with the copy.
    """
    run = p.__dict__.pop(RUN, None)
    if run is not None:
        run.detach()
        if processed is not None:
            run.show_sources(processed)
    for name in ("init", "sample"):
        replaced = p.__dict__.get(name)
        if hasattr(replaced, ORIGINAL):
            del p.__dict__[name]
            original = getattr(replaced, ORIGINAL)
            if getattr(original, "__func__", None) is not getattr(type(p), name):
                setattr(p, name, original)  # another extension had replaced it first


def _replace(p, name: str, method) -> None:
    original = getattr(p, name)

    @wraps(original)
    def replaced(*args, **kwargs):
        # Others keep this function over several runs of one job (ControlNet does): it serves the one at work.
        run = p.__dict__.get(RUN)
        return method(run, original, *args, **kwargs) if run else original(*args, **kwargs)

    setattr(replaced, ORIGINAL, original)
    setattr(p, name, replaced)


def _raiser(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@contextmanager
def _recorded_pixels() -> Iterator[list[Tensor]]:
    """What img2img's `init` encodes, `[b, 3, h, w]` in -1..1: the init images resized, cropped and filled."""
    seen = []
    encode = processing.images_tensor_to_samples

    def recorded(image, *args, **kwargs):
        seen.append(image.detach().float().cpu() * 2 - 1)
        return encode(image, *args, **kwargs)

    processing.images_tensor_to_samples = recorded
    try:
        yield seen
    finally:
        processing.images_tensor_to_samples = encode
