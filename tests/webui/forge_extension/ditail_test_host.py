"""What the fault injector has to know of Forge: see `ditail_test_faults.py` in the scripts of `probe_extension`."""

import ast
import gc
from pathlib import Path

from backend import loader, memory_management
from backend.diffusion_engine.base import ForgeDiffusionEngine
from backend.patcher import base, clip, unet, vae
from backend.sampling import sampling_function
from backend.text_processing import classic_engine
from modules import sd_models, sd_samplers_kdiffusion, sd_samplers_timesteps
from modules_forge import main_entry
from torch import nn

POINTS = {
    "vae.encode": "backend.patcher.vae:VAE.encode",
    "vae.decode": "backend.patcher.vae:VAE.decode",
    "load.reload": "modules.sd_models:forge_model_reload",
    "load.model": "backend.loader:forge_loader",
    "load.split": "backend.loader:split_state_dict",
    "load.component": "backend.loader:load_huggingface_component",
    "load.read": "backend.utils:load_torch_file",
    "memory.load": "backend.memory_management:load_models_gpu",
    "memory.load_one": "backend.memory_management:LoadedModel.model_load",
    "memory.unload": "backend.memory_management:LoadedModel.model_unload",
    "memory.unload_all": "backend.memory_management:unload_all_models",
    "memory.empty_cache": "backend.memory_management:soft_empty_cache",
    "circular": "modules_forge.utils:apply_circular_forge",
    "networks.patch": "networks:load_lora_for_models",
    "networks.apply": "backend.patcher.lora:LoraLoader.refresh",
    "unet.call": "backend.nn.unet:IntegratedUNet2DConditionModel.forward",
    "sampler.prepare": "backend.sampling.sampling_function:sampling_prepare",
    "sampler.cleanup": "backend.sampling.sampling_function:sampling_cleanup",
    "ditail.fingerprint": "ditail.webui.forge.checkpoints:ForgeCheckpoints.fingerprint",
    "ditail.encode": "ditail.webui.forge.source_models:ForgeModels.encode",
    "ditail.denoiser": "ditail.webui.forge.source_models:source_denoiser",
    "ditail.null": "ditail.webui.forge.source_models:null_conditioning",
    "ditail.features_key": "ditail.webui.forge.target:ForgeTarget.describe",
}
ONLY_IN = {"load.read": "load.model"}  # Forge reads LoRAs by the same function
WATCHED = (base, classic_engine, clip, loader, memory_management, sampling_function, sd_samplers_kdiffusion,
           sd_samplers_timesteps, unet, vae)


def models() -> list:
    """Every model in memory, the one of the settings first."""
    gc.collect()
    engines = [one for one in gc.get_objects() if isinstance(one, ForgeDiffusionEngine)]
    return sorted(engines, key=lambda engine: engine is not sd_models.model_data.sd_model)


def parts(model) -> dict[str, nn.Module]:
    objects = model.forge_objects_original
    return {"unet": objects.unet.model, "text": objects.clip.patcher.model, "vae": objects.vae.patcher.model}


def details(model) -> dict:
    """What of a model is in no weight."""
    objects, data = model.forge_objects_original, sd_models.model_data
    options = [part.model_options for part in (objects.unet, objects.clip.patcher, objects.vae.patcher)]
    return {"hash": data.forge_hash, "parameters": str(data.forge_loading_parameters), "tiling": model.tiling_enabled,
            "patched": [{name: repr(value) for name, value in of_part.items() if value} for of_part in options]}


def state(model) -> dict:
    """All that a job must leave as it was and that AUTOMATIC1111's WebUI has in another way or not at all."""
    is_loaded = isinstance(model, ForgeDiffusionEngine)
    networks = ast.literal_eval(model.current_lora_hash) if is_loaded else []
    ours = list(parts(model).values()) if is_loaded else []
    on_gpu = [entry.model.model for entry in memory_management.current_loaded_models]
    return {
        "networks": [[Path(file).stem, of_text, of_unet] for file, of_unet, of_text, _ in networks],
        "notes": [getattr(model, "comments", []), getattr(model, "extra_generation_params", {}),
                  classic_engine.last_extra_generation_params],
        "others_on_gpu": sum(not any(one is part for part in ours) for one in on_gpu) if is_loaded else 0,
    }


def load_again() -> None:
    """Load the model that is chosen in the settings, after whatever happened."""
    memory_management.unload_all_models()
    main_entry.refresh_model_loading_parameters()
    sd_models.model_data.sd_model, sd_models.model_data.forge_hash = None, ""
    gc.collect()
    sd_models.forge_model_reload()
