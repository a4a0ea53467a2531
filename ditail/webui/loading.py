"""Putting other models in place of the WebUI's, through its own loading, and the target back."""

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
    """The VAE of the WebUI's settings, for sources that name none; "" where each checkpoint has its own."""
    return "" if shared.opts.sd_vae in ("Automatic", None) else shared.opts.sd_vae


@dataclass(frozen=True)
class Loaded:
    """A checkpoint and the file of its VAE (None: its own) as they are in place."""

    info: object
    vae_file: str | None

    @classmethod
    def now(cls) -> "Loaded":
        # Not `shared.sd_model`, which loads one where there is none.
        return cls(getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None), sd_vae.loaded_vae_file)

    def check_files(self) -> None:
        """Raise DitailError unless both can be loaded again after others took their place."""
        for path in filter(None, (self.info and self.info.filename, self.vae_file)):
            try:
                # A safetensors header names the file's length, so this also finds one that was cut off.
                with safe_open(path, "pt") if path.endswith(".safetensors") else open(path, "rb"):
                    pass
            except (SafetensorError, OSError) as error:
                raise DitailError("source_checkpoint", f"{os.path.basename(path)} is in use and could not be loaded "
                                  f"back after another model ({error})") from error


@contextmanager
def restored_models(p=None, *, is_sound: Callable[[BaseException], bool]) -> Iterator[Loaded]:
    """A block that may load other models: yields what is in place, which is in place again afterwards.

    is_sound: whether the model that is in place can be trusted when this is raised in the block; otherwise the one of
    before is loaded anew. So it is if putting it back raises. If loading it anew raises too, the WebUI is left without
    a model, which makes its next job load one, and DitailError is raised.
    """
    before = Loaded.now()
    try:
        yield before
    except BaseException as error:
        _put_back(before, p, anew=not is_sound(error))
        raise
    else:
        _put_back(before, p)


def _put_back(before: Loaded, p, *, anew: bool = False) -> None:
    if before.info is None:
        return None  # there was none, so the next job loads one anyway
    if Loaded.now() != before:
        log.info("%s: back in place as the target", before.info.name_for_extra)
    try:
        if not anew:
            return switch_to(before, p)
    except Exception:
        log.exception("loading %s back", before.info.name)
    except BaseException:
        _forget_models()
        raise
    _forget_models()
    try:
        with sd_models.SkipWritingToConfig():
            sd_models.load_model(before.info)
        switch_to(before, p)
    except BaseException as error:
        _forget_models()
        raise DitailError("source_checkpoint", f"{before.info.name_for_extra}, the target, can't be loaded back "
                          f"({error}); the next image loads it again") from error


def _forget_models() -> None:
    """Leave the WebUI as it is at its start, without a model: whoever needs one next loads that of the settings."""
    data = sd_models.model_data
    for model in {data.sd_model, *data.loaded_sd_models} - {None}:
        with suppress(Exception):  # it only frees memory, and what is wrong with a model may be anything
            sd_models.send_model_to_trash(model)
    data.sd_model, data.was_loaded_at_least_once = None, False
    data.loaded_sd_models.clear()
    sd_vae.delete_base_vae()
    sd_vae.clear_loaded_vae()


@contextmanager
def borrowed_models(p) -> Iterator[Callable[..., AbstractContextManager[Model]]]:
    """For a block, a function `borrow(checkpoint, vae_file, networks, why)`: a context with that model in place.

    It raises DitailError if one can't be loaded, and before anything is unloaded if the target could not come back;
    nothing is loaded that is in place already. Afterwards the target is back (see `restored_models`).
    """
    wanted, is_loading = family_of_target(), False
    # The WebUI may believe a half-dismantled model to be loaded after whatever ended the loading, an interrupt, too.
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
            check_same_family(checkpoint, family_of_unet(loaded.unet()), target.info, wanted)
            with active_extra_networks(p, networks):
                yield shared.sd_model
                for comment in sd_hijack.model_hijack.comments:
                    p.comment(f"{comment} (source prompt)")
                sd_hijack.model_hijack.clear_comments()

        yield borrow


def switch_to(wanted: Loaded, p=None) -> None:
    """Put a checkpoint with its VAE in place, as job `p` needs it."""
    with sd_models.SkipWritingToConfig():
        sd_models.reload_model_weights(info=wanted.info)
        sd_vae.reload_vae_weights(vae_file=wanted.vae_file)
    if p is None:
        return
    # A checkpoint with its own yaml is a new model object, which these have not been done to.
    sd_models.apply_alpha_schedule_override(shared.sd_model)
    sd_hijack.model_hijack.apply_circular(p.tiling)
    turn_off_hypertile(p)


def job_without_prompts():
    """A job for `extra_networks`, which may add a tag to its prompts."""
    made = processing.StableDiffusionProcessingTxt2Img()
    made.all_prompts = []
    return made


@contextmanager
def active_extra_networks(p, networks: Networks) -> Iterator[None]:
    """Run a block with these extra networks (LoRA, ...) and no others."""
    if p.disable_extra_networks:
        yield
        return
    stand_in = job_without_prompts()
    with ExitStack() as undo:
        # Undone last first: without networks, then the deactivation, each also if the one before it raises.
        undo.callback(lambda: [p.comment(comment) for comment in stand_in.comments])
        undo.callback(extra_networks.deactivate, stand_in, {})
        undo.callback(extra_networks.activate, stand_in, {})
        with devices.autocast():
            extra_networks.activate(stand_in, networks)
        yield
