"""What the target's features depend on: everything that may change what the loaded U-Net computes in a job."""

import re
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from modules import devices, paths_internal, sd_hijack, sd_unet, shared
from PIL import Image
from torch import Tensor, nn

from ..keys import file_mark

# Folders of scripts that do to a U-Net nothing but what is asked for here.
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
    """All that the loaded U-Net's answers depend on. Raises TypeError or ValueError where that isn't known."""
    if sd_unet.current_unet is not None:
        raise ValueError("another U-Net stands in for the model's")
    model = shared.sd_model
    unet = model.model.diffusion_model
    _put_loras_in(unet)
    return {
        "checkpoint": file_mark(model.sd_checkpoint_info.filename), "weights": _some_weights(unet),
        "networks": _networks(p), "scripts": _other_scripts(p),
        "dtypes": [*map(str, (devices.dtype, devices.dtype_unet, devices.dtype_inference)), devices.unet_needs_upcast],
        "weight_dtypes": sorted({str(parameter.dtype) for parameter in unet.parameters()}),
        "attention": [sd_hijack.model_hijack.optimization_method, shared.opts.upcast_attn],
        "tiling": sd_hijack.model_hijack.circular_enabled,
        "token_merging": getattr(model, "applied_token_merged_ratio", 0),
    }


def _some_weights(model: nn.Module) -> Tensor:
    """One value of every output channel of every layer.

    They are asked because a file may have changed since it was loaded, and a model in memory need not be that of any
    file: not a checkpoint, nor a LoRA, which the WebUI doesn't put in again while its name and weight stay the same.
    """
    found = []
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            weight = torch.atleast_1d(_without_last_loras(module, name, weight))
            found.append(weight[(slice(None), *[0] * (weight.ndim - 1))].float())
    return torch.cat([values.to(found[0].device) for values in found])


def _put_loras_in(unet: nn.Module) -> None:
    """Make the weights those of the job's LoRAs now, as each layer would when it's next called.

    Not where layers wait on the CPU for their turn: the same sum may come out otherwise there.
    """
    if LORA in sys.modules and not _lora_functional() and not shared.sd_model.lowvram:
        for module in unet.modules():
            if isinstance(module, LORA_LAYERS):
                sys.modules[LORA].network_apply_weights(module)


def _without_last_loras(module: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A layer's weight; where LoRAs are yet to be taken out or put in, what it is without any."""
    wanted = tuple((lora.name, lora.te_multiplier, lora.unet_multiplier, lora.dyn_dim) for lora in _loras())
    if not _lora_functional() and getattr(module, "network_current_names", ()) == wanted:
        return weight
    backup = getattr(module, f"network_{'weights' if name == 'weight' else name}_backup", None)
    return weight if backup is None else backup


def _loras() -> list:
    return getattr(sys.modules.get(LORA), "loaded_networks", [])


def _lora_functional() -> bool:
    return getattr(shared.opts, "lora_functional", False)


def _networks(p) -> list:
    """The LoRAs and hypernetworks at work. Raises ValueError for tags of which only another extension knows more."""
    for tags in (p.extra_network_data, getattr(p, "hr_extra_network_data", None)):
        for kind, found in (tags or {}).items():
            if kind not in KNOWN_NETWORKS or not all(map(_has_plain_weights, found)):
                raise ValueError(f"<{kind}:...> may be more than this extension knows of")
    marks = [[lora.name, lora.mtime, file_mark(lora.network_on_disk.filename), lora.te_multiplier,
              lora.unet_multiplier, lora.dyn_dim, _lora_functional()] for lora in _loras()]
    for network in shared.loaded_hypernetworks:
        layers = [layer for pair in network.layers.values() for layer in pair]
        marks.append([network.name, [[layer.multiplier, _some_weights(layer)] for layer in layers]])
    return marks


def _has_plain_weights(tag) -> bool:
    weights = [*tag.positional[1:], *tag.named.values()]
    return not tag.named.keys() - NETWORK_WEIGHTS and all(NUMBER.fullmatch(str(weight)) for weight in weights)


def _other_scripts(p) -> list:
    """The arguments of other extensions' always-on scripts: what one does to the U-Net may leave no other mark."""
    return [
        [script.filename, _by_value(p.script_args[script.args_from : script.args_to])]
        for script in getattr(p.scripts, "alwayson_scripts", ())
        if not any(Path(script.filename).resolve().is_relative_to(known) for known in KNOWN_SCRIPTS)
    ]


def _by_value(argument):
    """An argument as what a key can hold. Raises TypeError for one that has no value to compare."""
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
