"""What the fault injector has to know of AUTOMATIC1111's WebUI: see `scripts/ditail_test_faults.py`."""

import gc
import hashlib
import sys

from modules import sd_hijack, sd_models, sd_vae
from torch import nn

POINTS = {
    "vae.encode": "ldm.models.diffusion.ddpm:LatentDiffusion.encode_first_stage",
    "vae.decode": "ldm.models.diffusion.ddpm:LatentDiffusion.decode_first_stage",
    "load.reload": "modules.sd_models:reload_model_weights",
    "load.model": "modules.sd_models:load_model",
    "load.weights": "modules.sd_models:load_model_weights",
    "load.to_cpu": "modules.sd_models:send_model_to_cpu",
    "load.read": "modules.sd_models:get_checkpoint_state_dict",
    "load.config": "modules.sd_models_config:find_checkpoint_config",
    "vae.reload": "modules.sd_vae:reload_vae_weights",
    "vae.load": "modules.sd_vae:load_vae",
    "vae.restore": "modules.sd_vae:restore_base_vae",
    "hijack.on": "modules.sd_hijack:StableDiffusionModelHijack.hijack",
    "hijack.off": "modules.sd_hijack:StableDiffusionModelHijack.undo_hijack",
    "hijack.circular": "modules.sd_hijack:StableDiffusionModelHijack.apply_circular",
    "networks.apply": "networks:network_apply_weights",
    "unet.call": "ldm.modules.diffusionmodules.openaimodel:UNetModel.forward",
    "ditail.fingerprint": "ditail.webui.checkpoints:WebuiCheckpoints.fingerprint",
    "ditail.encode": "ditail.webui.source_models:encode",
    "ditail.denoiser": "ditail.webui.source_models:source_denoiser",
    "ditail.null": "ditail.webui.target:null_conditioning",
    "ditail.features_key": "ditail.webui.target:describe_target",
}
ONLY_IN: dict[str, str] = {}
WATCHED = (sd_hijack, sd_models.lowvram)


def models() -> list:
    """Every model in memory."""
    data = sd_models.model_data
    others = [model for model in data.loaded_sd_models if model is not data.sd_model]
    return [model for model in (data.sd_model, *others) if model is not None]


def parts(model) -> dict[str, nn.Module]:
    return {"all": model}


def details(model) -> dict:
    """What of a model is in no weight."""
    return {"alphas": hashlib.sha256(model.alphas_cumprod.numpy().tobytes()).hexdigest()[:16],
            "token_merging": getattr(model, "applied_token_merged_ratio", 0)}


def state(model) -> dict:
    """All that a job must leave as it was and that Forge has in another way or not at all."""
    hijack, networks = sd_hijack.model_hijack, sys.modules.get("networks")
    return {
        "vae_file": sd_vae.loaded_vae_file, "base_vae": sd_vae.base_vae is not None,
        "networks": [[n.name, n.te_multiplier, n.unet_multiplier] for n in getattr(networks, "loaded_networks", [])],
        "hijack": [hijack.comments, hijack.extra_generation_params, hijack.circular_enabled],
        "skip_writing_to_config": sd_models.SkipWritingToConfig.skip,
    }


def load_again() -> None:
    """Load the model that is chosen in the settings, after whatever happened."""
    sd_models.SkipWritingToConfig.skip = False
    sd_models.model_data.loaded_sd_models.clear()
    sd_models.model_data.sd_model = None
    sd_vae.delete_base_vae()
    sd_vae.clear_loaded_vae()
    gc.collect()
    sd_models.load_model()
