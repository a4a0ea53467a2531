"""Loading source models in Forge: they are loaded in addition to the target, which stays in memory unchanged."""

import copy
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from backend import memory_management
from backend.loader import forge_loader
from backend.sampling.sampling_function import sampling_cleanup
from modules import extra_networks, sd_models
from modules_forge.utils import apply_circular_forge

from ...job.host import Checkpoint, Model, Networks
from ...unet.families import family_of_unet
from .. import loaded
from ..checkpoints import check_same_family, family_of_target, wrong_source
from ..loaded import modules_in_place
from ..loading import active_extra_networks, job_without_prompts
from .checkpoints import is_vae, vae_in_place

log = logging.getLogger("ditail")
# The supported prediction types of Forge's predictors.
PREDICTIONS = ("epsilon", "v_prediction")


def chosen_vae() -> str:
    """The VAE for sources without one: "" for the loaded one, which Forge uses for every checkpoint."""
    return ""


class NothingLoaded:
    """What `restored_models` yields. Forge loads the model of its settings when it is needed, so there is no check."""

    def check_files(self) -> None:
        pass


@contextmanager
def restored_models(*, is_sound: Callable[[BaseException], bool]) -> Iterator[NothingLoaded]:
    """A context for jobs that load other models by override settings; Forge loads the former again itself.

    is_sound: whether the loaded model is intact after an exception in the context.
    """
    loaded.load_selected()
    try:
        yield NothingLoaded()
    except BaseException as error:
        if not is_sound(error):
            # Forge changes the model before the hash, by which it would take the former model to be loaded.
            sd_models.model_data.forge_hash = ""
        raise


@dataclass
class Borrowed:
    """A loaded model (`engine`) with the files of its checkpoint and VAE."""

    path: str
    vae_file: str | None
    engine: object


@contextmanager
def borrowed_models(p) -> Iterator[Callable[..., AbstractContextManager[Model]]]:
    """See `job.host.SourceModels.borrowed_models`. The target stays in memory; Forge may move it off the GPU."""
    data, target_family = sd_models.model_data, family_of_target()
    target = Borrowed(data.sd_model.filename, vae_in_place(), data.sd_model)
    source: Borrowed | None = None

    @contextmanager
    def borrow(checkpoint: Checkpoint, vae_file: str | None, networks: Networks, why: str) -> Iterator[Model]:
        nonlocal source
        log.info("%s: %s", checkpoint.name, why)
        if (checkpoint.path, vae_file) == (target.path, target.vae_file):
            engine = target.engine
        else:
            if source is None or (checkpoint.path, vae_file) != (source.path, source.vae_file):
                data.sd_model = target.engine
                source = _unload(source)
                source = Borrowed(checkpoint.path, vae_file, _load(checkpoint, vae_file))
            engine = source.engine
        data.sd_model = engine
        check_same_family(checkpoint, family_of_unet(loaded.unet_of(engine)), target.engine.sd_checkpoint_info,
                          target_family)
        apply_circular_forge(engine, p.tiling)
        with _with_networks(p, engine, networks):
            yield engine

    try:
        yield borrow
    finally:
        data.sd_model = target.engine
        source = _unload(source)


def _load(checkpoint: Checkpoint, vae_file: str | None):
    """Load a checkpoint as Forge does, with its VAE and the text encoders that are selected for every checkpoint."""
    modules = [path for path in modules_in_place() if not is_vae(path)] + [vae_file] * (vae_file is not None)
    try:
        engine = forge_loader(checkpoint.path, additional_state_dicts=modules)
    except Exception as error:
        log.exception("loading %s", checkpoint.path)
        raise wrong_source(checkpoint.name, f"can't be loaded ({error})") from error
    if engine is None:
        raise wrong_source(checkpoint.name, "can't be loaded")
    # Attributes that `sd_models.forge_model_reload` sets.
    engine.extra_generation_params, engine.comments = {}, []
    engine.sd_checkpoint_info, engine.filename = checkpoint.handle, checkpoint.path
    engine.sd_model_hash = checkpoint.handle.shorthash
    predictor = engine.forge_objects.unet.model.predictor
    if predictor.prediction_type not in PREDICTIONS:
        raise wrong_source(checkpoint.name, f"predicts {predictor.prediction_type}, Ditail needs eps or v")
    return engine


def _unload(source: Borrowed | None) -> None:
    """Free a source model, also from Forge's list of models on the GPU."""
    if source is None:
        return
    objects = source.engine.forge_objects_original
    parts = [objects.unet.model, objects.clip.patcher.model, objects.vae.patcher.model]
    # Without Forge's `model_unload`, which only prepares a model for its next use, and may raise.
    on_gpu = memory_management.current_loaded_models
    on_gpu[:] = [entry for entry in on_gpu if not any(entry.model.model is model for model in parts)]
    source.engine = None
    del objects, parts
    gc.collect()
    memory_management.soft_empty_cache()


@contextmanager
def _with_networks(p, engine, networks: Networks) -> Iterator[None]:
    """A context with these extra networks active in a model, and no others. Its objects are restored afterwards."""
    before = engine.forge_objects
    try:
        if not p.disable_extra_networks:
            # If Forge does not find a network, it keeps the former ones, so deactivate them first.
            extra_networks.activate(job_without_prompts(), {})
        with active_extra_networks(p, networks):
            engine.forge_objects = engine.forge_objects_after_applying_lora.shallow_copy()
            yield
            for comment in [*engine.comments, *_missing(networks)]:
                p.comment(f"{comment} (source prompt)")
    finally:
        used, engine.forge_objects = engine.forge_objects, before
        sampling_cleanup(used.unet)


def _missing(networks: Networks) -> list[str]:
    """A comment that names the LoRAs that don't exist, as AUTOMATIC1111's WebUI writes it; Forge's log has no names."""
    known = getattr(sys.modules.get("networks"), "available_network_aliases", None)
    names = [lora.items[0] for lora in networks.get("lora", ()) if known is not None and lora.items[0] not in known]
    return [f"Lora not found: {', '.join(names)}"] if names else []


@contextmanager
def untouched_notes() -> Iterator[None]:
    """A context in which encoding prompts adds no comments and infotext to the image: these are not its prompts."""
    from backend.text_processing import classic_engine

    model = sd_models.model_data.sd_model
    before = model.comments, model.extra_generation_params, copy.copy(classic_engine.last_extra_generation_params)
    model.comments, model.extra_generation_params = [], {}
    try:
        yield
    finally:
        model.comments, model.extra_generation_params, classic_engine.last_extra_generation_params = before
