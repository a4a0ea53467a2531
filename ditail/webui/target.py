"""The target's U-Net in a job, and everything that its output depends on, as the key of the feature cache."""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from modules import devices, paths_internal, prompt_parser, sd_hijack, sd_unet, shared
from PIL import Image
from torch import Tensor, nn

from ..cache.features import Features
from ..errors import DitailError
from ..job.host import Row
from ..keys import cache_key, file_fingerprint
from ..method.layers import Layers
from ..method.prediction import Prediction
from ..method.schedule import InjectionSteps
from ..unet.shortcuts import Savings, Trusted, is_untouched
from ..unet.sites import find_sites
from . import caches, guidance, hijacks, loaded
from .sampling import timestep_at

log = logging.getLogger("ditail")

# The functions of ldm and sgm, and those that the WebUI replaces them with.
TRUSTED = Trusted(
    attention=(*Trusted.attention, "modules.sd_hijack_optimizations", "modules.hypernetworks.hypernetwork"),
    movers=("modules.lowvram",),
)
# Folders of scripts whose changes to a U-Net are all described by `describe_target`.
KNOWN_SCRIPTS = tuple(Path(folder).resolve() for folder in (
    paths_internal.modules_path, paths_internal.extensions_builtin_dir, Path(__file__).resolve().parents[2],
))
# The WebUI's built-in LoRA extension, and the layers that it changes.
LORA = "networks"
LORA_LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
KNOWN_NETWORKS = {"lora", "lyco", "hypernet"}
NETWORK_WEIGHTS = {"te", "unet", "dyn"}
NUMBER = re.compile(r"[-+]?\d*\.?\d+")


def describe_target(p) -> dict:
    """Everything that the loaded U-Net's output depends on. Raises TypeError or ValueError if that is not known."""
    if sd_unet.current_unet is not None:
        raise ValueError("the model's U-Net is replaced by another")
    model = shared.sd_model
    unet = model.model.diffusion_model
    _apply_loras(unet)
    return {
        "checkpoint": file_fingerprint(model.sd_checkpoint_info.filename), "weights": _weight_samples(unet),
        "networks": _networks(p), "scripts": other_scripts(p),
        "dtypes": [*map(str, (devices.dtype, devices.dtype_unet, devices.dtype_inference)), devices.unet_needs_upcast],
        "weight_dtypes": sorted({str(parameter.dtype) for parameter in unet.parameters()}),
        "attention": [sd_hijack.model_hijack.optimization_method, shared.opts.upcast_attn],
        "tiling": sd_hijack.model_hijack.circular_enabled,
        "token_merging": getattr(model, "applied_token_merged_ratio", 0),
    }


def _weight_samples(model: nn.Module) -> Tensor:
    """One value of every output channel of every layer.

    Files are not enough: one may have changed since it was loaded, and the WebUI does not load a LoRA again while its
    name and weight stay the same.
    """
    samples = []
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            samples.append(row_samples(_settled_weight(module, name, weight)))
    return torch.cat([sample.to(samples[0].device) for sample in samples])


def row_samples(weight: Tensor) -> Tensor:
    """One value `[rows]` of every row of a weight, float32."""
    weight = torch.atleast_1d(weight.detach())
    return weight[(slice(None), *[0] * (weight.ndim - 1))].float()


def _apply_loras(unet: nn.Module) -> None:
    """Apply the job's LoRAs to the weights now, as each layer would do at its next call.

    Not with --lowvram, where layers are on the CPU until they are called: the sum may be rounded differently there.
    """
    if LORA in sys.modules and not _lora_functional() and not shared.sd_model.lowvram:
        for module in unet.modules():
            if isinstance(module, LORA_LAYERS):
                sys.modules[LORA].network_apply_weights(module)


def _settled_weight(module: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A layer's weight with the job's LoRAs; if they are not applied yet, the weight without any LoRA."""
    current = tuple((lora.name, lora.te_multiplier, lora.unet_multiplier, lora.dyn_dim) for lora in _loras())
    if not _lora_functional() and getattr(module, "network_current_names", ()) == current:
        return weight
    backup = getattr(module, f"network_{'weights' if name == 'weight' else name}_backup", None)
    return weight if backup is None else backup


def _loras() -> list:
    return getattr(sys.modules.get(LORA), "loaded_networks", [])


def _lora_functional() -> bool:
    return getattr(shared.opts, "lora_functional", False)


def check_tags(p) -> None:
    """Raise ValueError where the job's prompts have tags whose effects are not known here."""
    for tags in (p.extra_network_data, getattr(p, "hr_extra_network_data", None)):
        for kind, networks in (tags or {}).items():
            if kind not in KNOWN_NETWORKS or not all(map(_has_plain_weights, networks)):
                raise ValueError(f"<{kind}:...> may have effects that are not known here")


def _networks(p) -> list:
    """The active LoRAs and hypernetworks. Raises ValueError for other kinds of tags, or unknown arguments."""
    check_tags(p)
    entries = [[lora.name, lora.mtime, file_fingerprint(lora.network_on_disk.filename), lora.te_multiplier,
                lora.unet_multiplier, lora.dyn_dim, _lora_functional()] for lora in _loras()]
    for network in shared.loaded_hypernetworks:
        layers = [layer for pair in network.layers.values() for layer in pair]
        entries.append([network.name, [[layer.multiplier, _weight_samples(layer)] for layer in layers]])
    return entries


def _has_plain_weights(tag) -> bool:
    weights = [*tag.positional[1:], *tag.named.values()]
    return not tag.named.keys() - NETWORK_WEIGHTS and all(NUMBER.fullmatch(str(weight)) for weight in weights)


def other_scripts(p) -> list:
    """The arguments of other extensions' always-on scripts, which may change the U-Net without a trace."""
    return [
        [script.filename, _by_value(p.script_args[script.args_from : script.args_to])]
        for script in getattr(p.scripts, "alwayson_scripts", ())
        if not any(Path(script.filename).resolve().is_relative_to(known) for known in KNOWN_SCRIPTS)
    ]


def _by_value(argument):
    """An argument as a value for a cache key. Raises TypeError for one that can't be compared by value."""
    if argument is None or isinstance(argument, str | int | float | Tensor):
        return argument
    if isinstance(argument, Mapping):
        return {str(key): _by_value(value) for key, value in argument.items()}
    if isinstance(argument, Sequence):
        return [_by_value(value) for value in argument]
    if isinstance(argument, Enum):
        return _by_value(argument.value)
    if isinstance(argument, Image.Image):
        argument = np.array(argument.convert("RGBA"))
    if isinstance(argument, np.ndarray):
        return torch.from_numpy(argument)
    if not hasattr(argument, "__dict__"):
        raise TypeError(f"a script's argument is a {type(argument).__name__}")
    return [type(argument).__qualname__, _by_value(vars(argument))]


class WebuiTarget:
    """The target's U-Net in the WebUI's job `p`: see `job.host.Target`."""

    def __init__(self, p):
        self.p = p
        self._rows: list[Row] = []

    def unet(self) -> nn.Module:
        return loaded.unet()

    def prediction(self) -> Prediction:
        return loaded.prediction(shared.sd_model)

    def check_layers(self, layers: Layers) -> None:
        find_sites(self.unet(), layers)

    def is_plain(self) -> bool:
        return not hijacks.shortens_attention(shared.sd_model) and is_untouched(self.unet(), TRUSTED)

    def keep_attention_whole(self) -> None:
        """Merged tokens and tiles differ between source and image. The WebUI restores both at a job's end."""
        hijacks.turn_off_hypertile(self.p)
        hijacks.turn_off_token_merging(self.p)

    def check_injection(self, steps: InjectionSteps) -> None:
        if "AttentionInjection" in hijacks.controlnet_kinds(self.p) and steps.has_attention:
            raise DitailError("attn_ratio", "ControlNet's reference preprocessors rewrite the self-attention that "
                              "Ditail injects into; set it to 0, or switch that unit off")

    def begin_step(self, params) -> float:
        """Called at each step: sets the rows of the following U-Net calls, of which there may be several.

        params: of the WebUI's callback. The rows are each image's prompts (several with AND), then the unconditional
        ones. Returns the step's timestep.
        """
        denoiser = params.denoiser
        prompts = [len(composed) for composed in denoiser.sampler.sampler_extra_args["cond"].batch]
        self._rows = [Row(image, True) for image, count in enumerate(prompts) for _ in range(count)]
        guidance.leave_out_image_of_uncond(params, len(self._rows))
        self._rows += [Row(image, False) for image in range(len(prompts))]
        return timestep_at(denoiser.inner_model, params.sigma)

    def rows_of(self, count: int, call: Mapping) -> Sequence[Row]:
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    def null(self, size: tuple[int, int]) -> Mapping[str, Tensor]:
        return null_conditioning(shared.sd_model, size)

    def savings(self) -> Savings:
        return Savings(upcast_attention=shared.opts.upcast_attn, trusted=TRUSTED)

    def features(self, source_keys: Sequence[str], null: Mapping[str, Tensor],
                 size: tuple[int, int]) -> Features | None:
        """Also None if the U-Net's output depends on something unknown."""
        if not caches.FEATURES.budget:
            return None
        try:
            return caches.FEATURES.under(cache_key({"sources": list(source_keys), "null": dict(null), "size": size,
                                                    **self.describe()}))
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            log.debug("features are not kept: %s", error)
            return None

    def describe(self) -> dict:
        """Everything that the U-Net's output depends on. Raises TypeError or ValueError if that is not known."""
        return describe_target(self.p)

    def without_others(self) -> AbstractContextManager:
        return hijacks.without_controlnet(self.p)


@torch.no_grad()
def null_conditioning(model, size: tuple[int, int]) -> dict[str, Tensor]:
    """The U-Net's keyword arguments for the prompt "", from the model's text encoder."""
    with devices.autocast():
        cond = model.get_learned_conditioning(prompt_parser.SdConditioning([""], True, *size))
    if isinstance(cond, dict):
        return {"context": devices.cond_cast_unet(cond["crossattn"]), "y": devices.cond_cast_unet(cond["vector"])}
    return {"context": devices.cond_cast_unet(cond)}
