"""The models that are loaded now, in AUTOMATIC1111's WebUI and in Forge: where each keeps what Ditail needs of them."""

from importlib.util import find_spec

from modules import sd_models, shared
from torch import Tensor, nn

IS_FORGE = find_spec("modules_forge") is not None


def unet_of(model) -> nn.Module:
    """A loaded model's U-Net."""
    return model.forge_objects.unet.model.diffusion_model if IS_FORGE else model.model.diffusion_model


def unet() -> nn.Module:
    """The U-Net of the model that is in place."""
    return unet_of(shared.sd_model)


def alphas_cumprod(model) -> Tensor:
    """A loaded model's schedule `[1000]`, float32 on the CPU."""
    if IS_FORGE:  # whose predictor knows its sigmas alone once the schedule is another
        return 1 / (model.forge_objects.unet.model.predictor.sigmas.float().cpu() ** 2 + 1)
    return model.alphas_cumprod.float().cpu()


def selected() -> object | None:
    """The model of the WebUI's settings, as far as it is in memory; None before it is loaded.

    AUTOMATIC1111's loads a checkpoint when it is chosen, Forge when it is first used.
    """
    model = sd_models.model_data.sd_model
    if not IS_FORGE:
        return model
    chosen = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
    return model if chosen is not None and getattr(model, "filename", None) == chosen.filename else None


def load_selected() -> object:
    """The model of the WebUI's settings, which is in place afterwards."""
    return sd_models.forge_model_reload()[0] if IS_FORGE else shared.sd_model


def in_memory() -> list:
    """Every model that is loaded."""
    data = sd_models.model_data
    models = [data.sd_model, *getattr(data, "loaded_sd_models", ())]
    return [model for i, model in enumerate(models)
            if model is not None and hasattr(model, "sd_checkpoint_info") and model not in models[:i]]
