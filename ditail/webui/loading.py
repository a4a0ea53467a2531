"""Loading source models with the WebUI's own functions, and the target again afterwards."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass

from modules import devices, extra_networks, processing, sd_hijack, sd_models, sd_vae, shared
from safetensors import SafetensorError, safe_open

from ..errors import DitailError
from ..job.host import Checkpoint, Model, Networks
from ..unet.families import family_of_unet
from . import loaded
from .checkpoints import check_same_family, family_of_target, wrong_source
from .hijacks import turn_off_hypertile

log = logging.getLogger("ditail")


def chosen_vae() -> str:
    """The VAE that is chosen in the WebUI's settings, for sources without one; "" if each checkpoint uses its own."""
    return "" if shared.opts.sd_vae in ("Automatic", None) else shared.opts.sd_vae


@dataclass(frozen=True)
class Loaded:
    """A loaded checkpoint and the file of its VAE (None: the checkpoint's own)."""

    info: object
    vae_file: str | None

    @classmethod
    def now(cls) -> "Loaded":
        # `shared.sd_model` would load a model if there is none.
        return cls(getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None), sd_vae.loaded_vae_file)

    def check_files(self) -> None:
        """Raise DitailError unless both files can still be read, so that they can be loaded again later."""
        for path in filter(None, (self.info and self.info.filename, self.vae_file)):
            try:
                # A safetensors header implies the file's length, so this also finds a truncated file.
                with safe_open(path, "pt") if path.endswith(".safetensors") else open(path, "rb"):
                    pass
            except (SafetensorError, OSError) as error:
                raise DitailError("source_checkpoint", f"{os.path.basename(path)} is in use and could not be loaded "
                                  f"back after another model ({error})") from error


@contextmanager
def restored_models(p=None, *, is_sound: Callable[[BaseException], bool]) -> Iterator[Loaded]:
    """A context in which other models may be loaded; yields the current model, which is restored afterwards.

    is_sound: whether the loaded model is intact after an exception in the context; if not, or if restoring raises, the
    former model is loaded from its file. If that raises too, the WebUI is left without a model, so that its next job
    loads one, and DitailError is raised.
    """
    before = Loaded.now()
    try:
        yield before
    except BaseException as error:
        _restore(before, p, reload=not is_sound(error))
        raise
    else:
        _restore(before, p)


def _restore(before: Loaded, p, *, reload: bool = False) -> None:
    if before.info is None:
        return None  # no model was loaded; the next job loads one
    if Loaded.now() != before:
        log.info("%s: loaded again as the target", before.info.name_for_extra)
    try:
        if not reload:
            return switch_to(before, p)
    except Exception:
        log.exception("loading %s back", before.info.name)
    except BaseException:
        _unload_models()
        raise
    _unload_models()
    try:
        with sd_models.SkipWritingToConfig():
            sd_models.load_model(before.info)
        switch_to(before, p)
    except BaseException as error:
        _unload_models()
        raise DitailError("source_checkpoint", f"{before.info.name_for_extra}, the target, can't be loaded back "
                          f"({error}); the next image loads it again") from error


def _unload_models() -> None:
    """Remove all models, as at the WebUI's start, so that the next job loads the one that is chosen in the settings."""
    data = sd_models.model_data
    for model in {data.sd_model, *data.loaded_sd_models} - {None}:
        with suppress(Exception):  # it only frees memory, and a broken model may raise anything
            sd_models.send_model_to_trash(model)
    data.sd_model, data.was_loaded_at_least_once = None, False
    data.loaded_sd_models.clear()
    sd_vae.delete_base_vae()
    sd_vae.clear_loaded_vae()


@contextmanager
def borrowed_models(p) -> Iterator[Callable[..., AbstractContextManager[Model]]]:
    """A context that yields `borrow(checkpoint, vae_file, networks, why)`, a context that yields that model.

    `borrow` raises DitailError if the model can't be loaded, or, before it unloads anything, if the target could not be
    loaded again. A model that is already loaded is not loaded again. Afterwards the target is restored (see
    `restored_models`).
    """
    target_family, is_loading = family_of_target(), False
    # When an exception ends the loading, the WebUI may keep a partly loaded model as its current one.
    with restored_models(p, is_sound=lambda error: not is_loading) as target:

        @contextmanager
        def borrow(checkpoint: Checkpoint, vae_file: str | None, networks: Networks, why: str) -> Iterator[Model]:
            nonlocal is_loading
            log.info("%s: %s", checkpoint.name, why)
            source = Loaded(checkpoint.handle, vae_file)
            if source != Loaded.now():
                target.check_files()
            is_loading = True
            try:
                switch_to(source, p)
            except Exception as error:
                log.exception("loading %s", checkpoint.path)
                raise wrong_source(checkpoint.name, f"can't be loaded ({error})") from error
            is_loading = False
            check_same_family(checkpoint, family_of_unet(loaded.unet()), target.info, target_family)
            with active_extra_networks(p, networks):
                yield shared.sd_model
                for comment in sd_hijack.model_hijack.comments:
                    p.comment(f"{comment} (source prompt)")
                sd_hijack.model_hijack.clear_comments()

        yield borrow


def switch_to(model: Loaded, p=None) -> None:
    """Make a checkpoint with its VAE the current model, prepared for job `p`."""
    with sd_models.SkipWritingToConfig():
        sd_models.reload_model_weights(info=model.info)
        sd_vae.reload_vae_weights(vae_file=model.vae_file)
    if p is None:
        return
    # A checkpoint with its own yaml is a new model object, which needs the job's changes again.
    sd_models.apply_alpha_schedule_override(shared.sd_model)
    sd_hijack.model_hijack.apply_circular(p.tiling)
    turn_off_hypertile(p)


def job_without_prompts():
    """A job for calls of `extra_networks`, which may add a tag to the job's prompts."""
    job = processing.StableDiffusionProcessingTxt2Img()
    job.all_prompts = []
    return job


def _activate_none(job) -> None:
    """Make no extra network active. Tried twice, as after a failure the source's would stay until the next job."""
    try:
        extra_networks.activate(job, {})
    except Exception:
        extra_networks.activate(job, {})
        raise


@contextmanager
def active_extra_networks(p, networks: Networks) -> Iterator[None]:
    """A context with these extra networks (LoRA, ...) active, and no others."""
    if p.disable_extra_networks:
        yield
        return
    stand_in = job_without_prompts()
    with ExitStack() as undo:
        # Called in reverse order, each also if the one before it raises: activation of none, then the deactivation.
        undo.callback(lambda: [p.comment(comment) for comment in stand_in.comments])
        undo.callback(extra_networks.deactivate, stand_in, {})
        undo.callback(_activate_none, stand_in)
        with devices.autocast():
            extra_networks.activate(stand_in, networks)
        yield
