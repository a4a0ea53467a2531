"""Ditail in one job of the WebUI: calls the host-neutral `job.Job` from the WebUI's methods and callbacks."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from modules import images, sd_samplers, sd_unet, shared
from PIL import Image
from torch import Tensor

from ..content.settings import warnings_of
from ..errors import DitailError
from ..job.finish import finish_image
from ..job.host import Interrupted
from ..job.job import Job
from ..job.plan import image_hashes
from ..job.preview import Preview
from ..job.request import Request
from ..job.source import Source, distinct
from ..method.latents import SourceLatents
from . import caches, guidance, hijacks, kept_images, loaded, preview
from .controls import Extras, selected_script
from .failures import errors_for_the_user, in_words
from .host import WebuiHost
from .infotext import content_infotext, infotext_of, source_infotext
from .progress import sampling_text

RUN = "_ditail_run"
# Attribute of a job of the matrix: see `Job.is_plain`.
PLAIN = "_ditail_plain"
# Scripts of the Script dropdown whose jobs may have further images: X/Y/Z reads only the first image of each job. Other
# scripts lay all images of a job out, or count them.
SHOW_SOURCES = ("", "Ditail folder", "X/Y/Z plot")
# Attributes of a job that is one of several: the requests of later jobs, and its `controls.Extras`.
SWEEP, EXTRAS = "_ditail_sweep", "_ditail_extras"


class Run:
    """Ditail in one processing job `p`. error: of its settings, raised in `init`, where the user sees it."""

    def __init__(self, p, request: Request | None, error: Exception | None = None, *, sweep: Sequence[Request] = (),
                 extras: Extras | None = None, is_plain: bool = False):
        self.p, self.error, self.extras = p, error, extras or Extras()
        self.job: Job | None = None
        if request is not None:
            host = WebuiHost(p, lambda: [sampling.plan.steps for sampling in self.job.samplings.values()])
            self.job = Job(host, request, caches.LATENTS, sweep=sweep, is_plain=is_plain,
                           is_preview=preview.is_preview(self.extras))
        self._recorder: hijacks.Recorder | None = None
        self._guidance = ExitStack()
        self._is_attached = False
        self.preview: Preview | None = None

    def install(self) -> None:
        """Replace `init` and `sample` of the job."""
        setattr(self.p, RUN, self)
        for name, method in (("init", Run._init), ("sample", Run._sample)):
            hijacks.replace_method(self.p, name, partial(_method_of, self.p, method))

    @property
    def _first(self) -> int:
        """The number of the first image of the current batch."""
        return self.p.iteration * self.p.batch_size

    def _init(self, original, *args, **kwargs) -> None:
        with errors_for_the_user(self.p):
            # Of the job before, in a plot or a folder. The WebUI resets it only later, before each batch.
            shared.state.skipped = False
            if self.error:
                raise self.error
            if None in getattr(self.p, "init_images", ()):
                raise DitailError("init_images", "choose an image in the tab itself, which is what img2img starts "
                                  "from; with a content image alone, use txt2img")
            with hijacks.recorded_pixels() as pixels:
                original(*args, **kwargs)
            self._prepare(list(pixels[0].split(1)) if pixels else [])

    def _prepare(self, init_images: list[Tensor]) -> None:
        caches.apply_settings()
        if sd_unet.get_unet_option() is not None:
            raise DitailError("sd_unet", f'"{shared.opts.sd_unet}" has no layers to inject into; set SD Unet to None')
        sd_unet.apply_unet()  # removes that of an earlier job, which would be called in the source pass
        p, job = self.p, self.job
        if job.request.settings.show_source and not self._can_show_sources:
            p.comment(f"Ditail: the content images are not shown with the script {selected_script(p)}")
        # A source has neither a second pass nor a refiner.
        can_record = not (hasattr(p, "init_images") or getattr(p, "enable_hr", False) or p.refiner_checkpoint_info)
        try:
            if job.prepare(init_images, can_record=can_record):
                self._recorder = hijacks.Recorder(job.samplings[False].plan)
        except Interrupted:
            # Skip would go on with the next image, which would be a plain one, so it ends the job like Interrupt.
            shared.state.interrupted = True
            p.comment("Ditail: interrupted before the source was ready, so there is no image")
            return
        if not job.is_plain:
            settings = job.request.settings
            warnings = warnings_of(alpha=settings.alpha, beta=settings.beta, cfg_scale=p.cfg_scale)
            for sentence in (*warnings, *self.extras.notes):
                p.comment(f"Ditail: {sentence}")
            hashes = image_hashes(job.request, job.samplings, init_images)
            has_content = job.request.image is not None or job.request.collage
            kept_images.keep(job.request, {} if has_content else dict(zip(hashes, init_images, strict=False)))
            # A new dict, as another extension's job (ADetailer's) may share it with the job that it was copied from.
            p.extra_generation_params = {**p.extra_generation_params, **infotext_of(job.request, hashes,
                                                                                      self.extras.image_name)}

    def _sample(self, original, *args, **kwargs) -> Tensor | list[Tensor]:
        with errors_for_the_user(self.p):
            if self.job.is_preview:
                return preview.sample(self)
            self._is_attached = False
            self._renew_sampler()
            try:
                with sampling_text(self.p):
                    samples = original(*args, **kwargs)
            finally:
                self.detach()
            if self.error:
                raise self.error
            if not self._is_attached and not shared.state.interrupted:
                raise DitailError("enabled", "a script that samples in its own way (img2img alternative, say) leaves "
                                  "Ditail nothing to follow; switch one of the two off")
            # Checked after the sampling, as other extensions may have changed the U-Net only during it.
            if self._recorder and self._recorder.is_complete and self.job.host.target.is_plain():
                self._keep(self._recorder.latents(loaded.alphas_cumprod(shared.sd_model), samples))
            return samples

    def _keep(self, latents: list[SourceLatents]) -> None:
        try:
            self.job.keep_recorded(self._first, latents)
        except Interrupted:
            shared.state.interrupted = True  # this image is complete; later jobs have to invert it

    def _renew_sampler(self) -> None:
        """Create img2img's sampler again, if its model was replaced after `init` (by a source pass or another job)."""
        sampler = self.p.sampler
        if sampler and getattr(sampler.model_wrap_cfg.inner_model, "inner_model", None) is not shared.sd_model:
            self.p.sampler = sd_samplers.create_sampler(self.p.sampler_name, shared.sd_model)

    def attach(self, x: Tensor, noise: Tensor) -> None:
        """Prepare the sampling that is about to begin. x, noise: the tensors that the sampler will read."""
        try:
            self._is_attached = True
            if self.error:  # of the first pass, which has ended
                raise self.error
            if self._recorder:
                self._recorder.attach(self.p.sampler)
            hires = bool(self.p.is_hr_pass)
            self.job.attach(x, noise, hires=hires, first=self._first)
            self._guidance.close()
            self._guidance.enter_context(guidance.limited_guidance(self.p.sampler, self.job.guided_above(hires=hires)))
        except Exception as error:
            self.error = error
            hijacks.make_sampler_raise(self.p.sampler, error)

    def follow(self, params) -> None:
        """Called at each step before the U-Net. params: of the WebUI's callback."""
        try:
            timestep = self.job.host.target.begin_step(params)
            self.job.follow(hires=bool(self.p.is_hr_pass), first=self._first, timestep=timestep)
        except Exception as error:
            self.error = error
            hijacks.end_sampling(params.denoiser)

    def detach(self) -> None:
        """Remove the hooks from every U-Net that has them."""
        self._guidance.close()
        if self.job is not None:
            self.job.detach()

    def finish(self, image: Image.Image) -> Image.Image:
        """A decoded image of the batch with the post-processing of the settings."""
        try:
            return finish_image(self.job, image, self._first + self.p.batch_index)
        except DitailError as error:
            self.p.comment(f"Ditail: {in_words(error)}")
            return image

    @property
    def _can_show_sources(self) -> bool:
        return selected_script(self.p) in SHOW_SOURCES

    def show_sources(self, processed) -> None:
        """Add the content images to a finished job's images, each with infotext."""
        job, p = self.job, self.p
        if job is None or job.is_plain or job.is_preview or not self._can_show_sources:
            return
        if not job.request.settings.show_source or False not in job.samplings:
            return
        for source in distinct(job.samplings[False].sources):
            if source.origin.kind == "generate" and source.origin.key not in job.latents:
                continue  # interrupted
            image, text = source.content_image(job.latents), self._infotext_of(source)
            image.info["parameters"] = text
            processed.images.append(image)
            processed.infotexts.append(text)
            if p.save_samples():
                images.save_image(image, p.outpath_samples, "", p.all_seeds[source.image_number], source.prompts[0],
                                  shared.opts.samples_format, info=text, p=p, suffix="-ditail-source")

    def _infotext_of(self, source: Source) -> str:
        if source.origin.kind == "image":
            return content_infotext(self.p, source.image_number)
        prompt = self.job.request.settings.source_prompt or self.p.all_prompts[source.image_number]
        return source_infotext(self.p, source.checkpoint.handle, (prompt, source.prompts[1]), source.image_number)


def _method_of(p, method):
    run = p.__dict__.get(RUN)
    return partial(method, run) if run else None


def release(p, processed=None) -> None:
    """Restore a job's methods and remove its hooks, if it has any.

    processed: the finished job's result, to which the content images are added. A script may copy a job or run it
    twice, so a copy's attributes are removed, too.
    """
    run = p.__dict__.pop(RUN, None)
    if run is not None:
        run.detach()
        if processed is not None:
            run.show_sources(processed)
            preview.show(run, processed)
    for name in hijacks.METHODS:
        hijacks.restore_method(p, name)
