"""Forge's checkpoints and VAEs, and their fingerprints."""

import os
import sys

import torch
from backend import attention
from backend.args import dynamic_args
from modules import devices, sd_vae, shared

from ...job.host import Checkpoint, Networks, Prompts
from .. import loaded
from ..checkpoints import WebuiCheckpoints, is_named, model_options, network_file, networks_of
from ..loaded import modules_in_place
from ..target import row_samples


def is_vae(path: str) -> bool:
    return os.path.abspath(path) in {os.path.abspath(vae) for vae in sd_vae.vae_dict.values()}


def vae_in_place() -> str | None:
    return next((path for path in modules_in_place() if is_vae(path)), None)


def embeddings_of(model) -> dict:
    """A model's textual inversions by name."""
    engine = getattr(model, "text_processing_engine", None) or model.text_processing_engine_l
    return engine.embeddings.word_embeddings


def lora_samples(networks: Networks) -> list:
    """One value of every row of the LoRAs that Forge has read; it keeps what it has read when a file is replaced."""
    files = filter(None, (network_file("lora", lora.items[0]) for lora in networks.get("lora", ())))
    try:
        read = [sys.modules["networks"].load_lora_state_dict(file) for file in files]
    except Exception:  # of any kind for a broken file; Forge logs it and goes on without LoRAs
        return []
    return [{name: row_samples(tensor) for name, tensor in tensors.items()} for tensors in read]


class ForgeCheckpoints(WebuiCheckpoints):
    """The checkpoints of Forge's job `p`: see `job.host.Checkpoints`."""

    def vae_file(self, checkpoint: Checkpoint, vae: str) -> str | None:
        """Forge uses one VAE for all checkpoints or each its own, and looks for none beside the file or in metadata."""
        return sd_vae.vae_dict.get(vae) if vae else vae_in_place()

    def fingerprint(self, checkpoint: Checkpoint, vae_file: str | None, prompts: Prompts, networks: Networks) -> dict:
        unet, info = shared.sd_model.forge_objects.unet.model, checkpoint.handle
        embeddings = embeddings_of(shared.sd_model)
        return {
            "host": "forge", "checkpoint": loaded.checkpoint_fingerprint(info),
            "vae": loaded.module_fingerprint(info, vae_file), "prompts": prompts,
            "modules": [loaded.module_fingerprint(info, path) for path in modules_in_place() if not is_vae(path)],
            # Forge takes this setting over only when it loads the target.
            "options": {**model_options(), "emphasis": dynamic_args.get("emphasis_name")},
            "networks": networks_of(networks, self.p), "loras": lora_samples(networks),
            "embeddings": {name: e.vec for name, e in embeddings.items() if is_named(name, prompts)},
            "dtypes": [str(unet.storage_dtype), str(unet.computation_dtype), str(devices.dtype_vae)],
            "storage": shared.opts.forge_unet_storage_dtype, "attention": attention.attention_function.__name__,
            "device": [devices.device.type, torch.get_num_threads()],
        }
