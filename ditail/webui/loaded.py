"""Access to the loaded models in AUTOMATIC1111's WebUI and in Forge."""

from importlib.util import find_spec
from itertools import count

from modules import sd_models, shared
from torch import Tensor, nn

from ..keys import file_fingerprint
from ..method.prediction import Prediction

IS_FORGE = find_spec("modules_forge") is not None
# A model's attribute: the fingerprint of its file when it was loaded.
LOADED_FILE = "_ditail_loaded_file"
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


def on_model_loaded(model) -> None:
    """The WebUI's callback after a model was loaded: notes the state of its file, which may be replaced later.

    The callback also comes after another VAE was loaded. If the file was replaced by then, nothing tells whether the
    weights are the old ones or the new, so the model gets a fingerprint of its own.
    """
    before, now = getattr(model, LOADED_FILE, None), file_fingerprint(model.sd_checkpoint_info.filename)
    is_unclear = before is not None and before[:1] == now[:1] and before != now
    setattr(model, LOADED_FILE, [*now, next(_callbacks)] if is_unclear else now)


def checkpoint_fingerprint(path: str) -> list:
    """The fingerprint of a checkpoint's file; of what it was when it was loaded, if it is in memory."""
    models = (model for model in in_memory() if model.sd_checkpoint_info.filename == path)
    return next((getattr(model, LOADED_FILE, None) for model in models), None) or file_fingerprint(path)
