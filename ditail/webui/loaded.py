"""Access to the loaded models in AUTOMATIC1111's WebUI and in Forge."""

from importlib.util import find_spec
from itertools import count
from weakref import WeakKeyDictionary

from modules import sd_models, sd_vae, shared
from torch import Tensor, nn

from ..keys import file_fingerprint
from ..method.prediction import Prediction

IS_FORGE = find_spec("modules_forge") is not None
# For each loaded model the fingerprints of its files when they were loaded, by path.
_loaded: "WeakKeyDictionary[object, dict[str, list]]" = WeakKeyDictionary()
# The same of the weights that AUTOMATIC1111's WebUI has read and keeps in RAM, by its keys there (`sd_checkpoint_cache`
# and `sd_vae_checkpoint_cache`).
_in_ram: dict = {}
_callbacks = count()


def unet_of(model) -> nn.Module:
    """A loaded model's U-Net."""
    return model.forge_objects.unet.model.diffusion_model if IS_FORGE else model.model.diffusion_model


def unet() -> nn.Module:
    """The U-Net of the current model."""
    return unet_of(shared.sd_model)


def alphas_cumprod(model) -> Tensor:
    """A loaded model's schedule `[1000]`, float32 on the CPU."""
    if IS_FORGE:  # its predictor only has sigmas
        return 1 / (model.forge_objects.unet.model.predictor.sigmas.float().cpu() ** 2 + 1)
    return model.alphas_cumprod.float().cpu()


def prediction(model) -> Prediction:
    """What the output of a loaded model's U-Net means."""
    is_v = (model.forge_objects.unet.model.predictor.prediction_type == "v_prediction" if IS_FORGE
            else getattr(model, "parameterization", "eps") == "v")
    return Prediction(alphas_cumprod(model), is_v)


def selected() -> object | None:
    """The model that is chosen in the WebUI's settings; None if it is not loaded yet.

    AUTOMATIC1111's WebUI loads a checkpoint when it is chosen, Forge when it is first used.
    """
    model = sd_models.model_data.sd_model
    if not IS_FORGE:
        return model
    info = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
    return model if info is not None and getattr(model, "filename", None) == info.filename else None


def load_selected() -> object:
    """Load the model that is chosen in the WebUI's settings, if it is not loaded yet, and return it."""
    return sd_models.forge_model_reload()[0] if IS_FORGE else shared.sd_model


def in_memory() -> list:
    """Every model in memory."""
    data = sd_models.model_data
    models = [data.sd_model, *getattr(data, "loaded_sd_models", ())]
    return [model for i, model in enumerate(models)
            if model is not None and hasattr(model, "sd_checkpoint_info") and model not in models[:i]]


def modules_in_place() -> list[str]:
    """The files that are loaded with the checkpoint: a VAE; in Forge text encoders, too."""
    if IS_FORGE:
        return list(sd_models.model_data.forge_loading_parameters.get("additional_modules") or ())
    return [sd_vae.loaded_vae_file] if sd_vae.loaded_vae_file else []


def on_model_loaded(model) -> None:
    """The WebUI's callback after a model was loaded: notes the state of its files, which may be replaced later.

    The callback also comes after another VAE was loaded. If the checkpoint's file was replaced by then, nothing tells
    whether the weights are the old ones or the new, so the model gets a fingerprint of its own.
    """
    info, modules = model.sd_checkpoint_info, modules_in_place()
    path, before = info.filename, _loaded.get(model, {})
    files = {file: _when_read(file) for file in modules} | {path: _when_read(path, info)}
    if before.get(path, files[path]) != files[path]:
        files[path] = [*files[path], next(_callbacks)]
    _loaded[model] = files
    in_ram = {*sd_models.checkpoints_loaded, *sd_vae.checkpoints_loaded}
    for key in set(_in_ram) - in_ram:
        del _in_ram[key]
    for key, file in ((info, path), *zip(modules, modules, strict=True)):
        if key in in_ram:
            _in_ram.setdefault(key, files[file])


def _when_read(path: str, info=None) -> list:
    """The fingerprint of a file whose weights are read now, or taken from RAM. info: a checkpoint's; else None."""
    if info is None and not getattr(shared.opts, "sd_vae_checkpoint_cache", 0):
        return file_fingerprint(path)
    return _in_ram.get(info or path) or file_fingerprint(path)


def checkpoint_fingerprint(info) -> list:
    """The fingerprint of a checkpoint's file; of what it was when it was read, if that is in memory."""
    return _loaded_files(info).get(info.filename) or _when_read(info.filename, info)


def module_fingerprint(info, path: str | None) -> list:
    """The same for a VAE (None: the checkpoint's own) or text encoder that the checkpoint is used with."""
    return [None] if path is None else _loaded_files(info).get(path) or _when_read(path)


def _loaded_files(info) -> dict[str, list]:
    """The fingerprints that were noted of a model in memory; empty if the checkpoint is not."""
    models = (model for model in in_memory() if model.sd_checkpoint_info.filename == info.filename)
    return next((_loaded.get(model, {}) for model in models), {})
