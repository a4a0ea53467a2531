"""The WebUI's checkpoints and VAEs: finding them, their families, and their fingerprints."""

import math
import os
import sys
from collections.abc import Mapping, Sequence

import torch
from modules import devices, extra_networks, sd_hijack, sd_models, sd_vae, shared
from safetensors import SafetensorError

from ..content.settings import BY_KEY
from ..errors import DitailError, named
from ..job.host import Checkpoint, Networks, Prompts, Replacement, SamplingPlan
from ..keys import file_fingerprint
from ..unet.families import SUPPORTED, SUPPORTED_IN_WORDS, family_of_file, family_of_unet
from . import loaded
from .presets import all_presets

# The WebUI's settings that change the output of a model or a text encoder.
MODEL_OPTIONS = (
    "CLIP_stop_at_last_layers", "cache_fp16_weight", "comma_padding_backtrack", "emphasis",
    "extra_networks_default_multiplier", "fp8_storage", "lora_functional", "sd_hypernetwork", "sd_lora",
    "sd_noise_schedule", "sd_vae_decode_method", "sd_vae_encode_method", "sdxl_clip_l_skip", "sdxl_crop_left",
    "sdxl_crop_top", "upcast_attn", "use_downcasted_alpha_bar", "use_old_emphasis_implementation", "use_old_scheduling",
)
# The settings that add an extra network to every prompt, by its kind.
NETWORK_OPTIONS = {"lora": "sd_lora", "hypernet": "sd_hypernetwork"}


def checkpoint_of(info) -> Checkpoint:
    """The WebUI's CheckpointInfo as a Checkpoint of the job layer."""
    return Checkpoint(info.filename, info.name_for_extra, info.title, info)


def find_checkpoint(name: str) -> Checkpoint | None:
    """The checkpoint of a title, name or hash; None for "". Raises DitailError if there is none."""
    if not name:
        return None
    BY_KEY["source_checkpoint"].check(name)  # limits its length: the time of the pattern below is quadratic in it
    plain = sd_models.re_strip_checksum.sub("", name)
    info = sd_models.checkpoint_aliases.get(name) or sd_models.checkpoint_aliases.get(plain)
    if info is None:
        raise DitailError("source_checkpoint", f'there is no checkpoint "{named(name)}"')
    if not os.path.isfile(info.filename):
        raise DitailError("source_checkpoint", f"the file of {info.name} no longer exists")
    return checkpoint_of(info)


def find_vae(name: str) -> str:
    """A value for the WebUI's `sd_vae` option. Raises DitailError if there is no such VAE."""
    if name in ("", "Automatic", "None"):
        return name or "Automatic"
    path = sd_vae.vae_dict.get(name)
    if path is None or not os.path.isfile(path):
        raise DitailError("source_vae", f'there is no VAE "{named(name)}"')
    return name


def vae_file_of(path: str, vae: str) -> str | None:
    """The file of the VAE that the checkpoint at `path` is used with; None for the checkpoint's own.

    vae: see `find_vae`. This repeats `sd_vae.resolve_vae`, which takes its choice from the WebUI's settings; those are
    shared by all threads and saved to `config.json`, so they can't be changed for a call.
    """
    if shared.cmd_opts.vae_path is not None:
        return shared.cmd_opts.vae_path
    if vae != "Automatic":
        return sd_vae.vae_dict.get(vae)
    chosen = sd_vae.resolve_vae_from_user_metadata(path)
    return chosen.vae if chosen.resolved else sd_vae.find_vae_near_checkpoint(path)


def check_family(checkpoint: Checkpoint) -> None:
    """Raise DitailError unless the target and the checkpoint are of one family that Ditail knows.

    Only the header of the file is read. A pickle has none, so it is checked once it is loaded.
    """
    target_family = family_of_target()
    if checkpoint.handle.is_safetensors:
        check_same_family(checkpoint, _family_in(checkpoint), shared.sd_model.sd_checkpoint_info, target_family)


def check_family_of_files(source: Checkpoint, target: Checkpoint) -> None:
    """The same for a target that is not loaded yet, by the headers of both files."""
    if source.handle.is_safetensors and target.handle.is_safetensors:
        check_same_family(source, _family_in(source), target.handle, _family_in(target))


def _family_in(checkpoint: Checkpoint) -> str:
    try:
        return family_of_file(checkpoint.path)
    except (SafetensorError, OSError) as error:
        raise wrong_source(checkpoint.name, f"can't be read ({error})") from error


def family_of_target() -> str:
    """The family of the loaded model. Raises DitailError for one that Ditail doesn't support."""
    family = family_of_unet(loaded.unet())
    if family not in SUPPORTED:
        raise DitailError(None, f"the target {shared.sd_model.sd_checkpoint_info.name_for_extra} is {family}: Ditail "
                          f"needs a checkpoint of {SUPPORTED_IN_WORDS}")
    return family


def check_same_family(source: Checkpoint, family: str, target, target_family: str) -> None:
    """Raise DitailError unless the source's family is supported and the target's. target: its CheckpointInfo."""
    if family not in SUPPORTED:
        raise wrong_source(source.name, f"is {family}: Ditail needs a checkpoint of {SUPPORTED_IN_WORDS}")
    if family != target_family:
        raise wrong_source(source.name, f"is {family}, the target {target.name_for_extra} is {target_family}")


def wrong_source(name: str, what: str) -> DitailError:
    return DitailError("source_checkpoint", f"{name} {what}")


def _is_refined(p, hires: bool) -> bool:
    """Whether the WebUI switches to the refiner in a pass."""
    left_out = "first pass" if hires else "second pass"
    return not getattr(p, "enable_hr", False) or shared.opts.hires_fix_refiner_pass != left_out


def refined_up_to(switch_at: float, timesteps: Sequence[float]) -> float:
    """A timestep up to which the refiner samples, with certainty, if it takes over at this share of the sampling.

    Forge counts calls of the model, the WebUI only by an option; the sampler decides how many calls a step has.
    """
    if not loaded.IS_FORGE and not shared.opts.refiner_switch_by_sample_steps:
        return 999 - 1000 * switch_at
    later = sorted(timesteps, reverse=True)[math.ceil(switch_at * len(timesteps)) + 1 :]
    return max(later, default=-math.inf)


class WebuiLibrary:
    """See `job.host.Library`."""

    find_checkpoint = staticmethod(find_checkpoint)
    find_vae = staticmethod(find_vae)
    presets = staticmethod(all_presets)


class WebuiCheckpoints:
    """The checkpoints of the WebUI's job `p`: see `job.host.Checkpoints`."""

    check_family = staticmethod(check_family)

    def __init__(self, p):
        self.p = p

    def target(self) -> Checkpoint:
        return checkpoint_of(shared.sd_model.sd_checkpoint_info)

    def replacements(self, plans: Mapping[bool, SamplingPlan]) -> Sequence[Replacement]:
        p, found = self.p, []
        if True in plans and getattr(p, "hr_checkpoint_info", None):
            found.append(Replacement(checkpoint_of(p.hr_checkpoint_info), True, math.inf, "hr_checkpoint_name"))
        if p.refiner_checkpoint_info:
            refiner = checkpoint_of(p.refiner_checkpoint_info)
            found += [Replacement(refiner, hires, refined_up_to(p.refiner_switch_at or 0, plan.timesteps),
                                  "refiner_checkpoint") for hires, plan in plans.items() if _is_refined(p, hires)]
        return found

    def vae_file(self, checkpoint: Checkpoint, vae: str) -> str | None:
        return vae_file_of(checkpoint.path, vae) if vae else sd_vae.loaded_vae_file

    def parse_prompt(self, text: str) -> tuple[str, Networks]:
        return extra_networks.parse_prompt(text)

    def fingerprint(self, checkpoint: Checkpoint, vae_file: str | None, prompts: Prompts, networks: Networks) -> dict:
        return {
            "checkpoint": loaded.checkpoint_fingerprint(checkpoint.handle),
            "vae": loaded.module_fingerprint(checkpoint.handle, vae_file),
            "prompts": prompts, "options": model_options(), "networks": networks_of(networks, self.p),
            "embeddings": {name: e.checksum() for name, e in sd_hijack.model_hijack.embedding_db.word_embeddings.items()
                           if is_named(name, prompts)},
            "dtypes": [str(devices.dtype_unet), str(devices.dtype_vae)], "tiling": bool(self.p.tiling),
            "attention": str(sd_hijack.model_hijack.optimization_method),
            # Rounding depends on the device and the number of threads, which may change while the cache is on disk.
            "device": [devices.device.type, torch.get_num_threads()],
        }


def model_options() -> dict:
    """The settings that change the output of a model or a text encoder, for a cache key."""
    return {key: shared.opts.data.get(key, shared.opts.get_default(key)) for key in MODEL_OPTIONS
            if key in shared.opts.data_labels}


def is_named(embedding: str, prompts: Prompts) -> bool:
    """Whether prompts may use a textual inversion, whose name is found as tokens, in upper or lower case."""
    return any(embedding.lower() in text.lower() for text in prompts)


def networks_of(networks: Networks, p) -> dict:
    """Extra networks with their files, for a cache key: those of a prompt's tags, and of the WebUI's settings."""
    if p.disable_extra_networks:  # then those of the job before stay active
        active = [*getattr(sys.modules.get("networks"), "loaded_networks", ()), *shared.loaded_hypernetworks]
        return {"active": [[network.name, str(getattr(network, "unet_multiplier", ""))] for network in active]}
    tags = {kind: [[*map(str, tag.items), file_fingerprint(network_file(kind, tag.items[0]))] for tag in of_kind]
            for kind, of_kind in networks.items()}
    chosen = {kind: file_fingerprint(network_file(kind, getattr(shared.opts, option, "None")))
              for kind, option in NETWORK_OPTIONS.items()}
    return {"tags": tags, "chosen": chosen}


def network_file(kind: str, name: str) -> str | None:
    """The file of a hypernetwork, or of a LoRA if the WebUI's built-in extension is loaded; None if it is not known."""
    if kind == "hypernet":
        return shared.hypernetworks.get(name)
    network = getattr(sys.modules.get("networks"), "available_network_aliases", {}).get(name)
    return getattr(network, "filename", None)
