"""The target's U-Net in Forge's job, and everything that its output depends on."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from backend import attention
from modules import sd_unet, shared
from torch import Tensor, nn

from ...errors import DitailError
from ...job.host import Row
from ...keys import file_fingerprint
from ...method.schedule import InjectionSteps
from ...unet.shortcuts import Savings, is_untouched
from .. import hijacks
from ..target import WebuiTarget, check_tags, other_scripts, row_samples
from .source_models import null_conditioning
from .trusted import TRUSTED


class ForgeTarget(WebuiTarget):
    """The target's U-Net in Forge's job `p`: see `job.host.Target`."""

    def is_plain(self) -> bool:
        patcher = _patcher()
        options = {name: value for name, value in patcher.model_options.items() if value}
        return not (options or patcher.controlnet_linked_list or patcher.object_patches
                    or self.p.get_token_merging_ratio()) and is_untouched(self.unet(), TRUSTED)

    def keep_attention_whole(self) -> None:
        """Merged tokens differ between source and image. Forge gets the ratio from the job's method when it samples."""
        if any(self.p.get_token_merging_ratio(for_hr=hires) for hires in (False, True)):
            hijacks.replace_method(self.p, hijacks.TOKEN_MERGING, lambda: lambda *_, **__: 0)
            self.p.comment("Ditail: token merging is off for this job")

    def check_injection(self, steps: InjectionSteps) -> None:
        options = _patcher().model_options.get("transformer_options", {})
        replaced = options.get("patches_replace", {}).get("attn1", {})
        if steps.has_attention and any(place[0] == "output" for place in replaced):
            raise DitailError("attn_ratio", "another extension (ControlNet's reference preprocessors, say) rewrites "
                              "the self-attention that Ditail injects into; set it to 0, or switch the other off")
        if "group_norm_wrapper" in options and steps.has_features:
            raise DitailError("conv_ratio", "another extension rewrites the normalisation in the layer that Ditail "
                              "injects into; set it to 0, or switch the other off")

    def begin_step(self, params) -> float:
        """The step's timestep. `rows_of` reads the rows from each call."""
        return float(_patcher().model.predictor.timestep(params.sigma).flatten()[0])

    def rows_of(self, count: int, call: Mapping) -> Sequence[Row]:
        """Forge calls the U-Net with whole batches, whose kinds are in `transformer_options` (0 = cond)."""
        kinds = call.get("transformer_options", {}).get("cond_or_uncond", ())
        images, rest = divmod(count, len(kinds) or 1)
        if not kinds or rest or images > self.p.batch_size:
            raise DitailError(None, f"the U-Net is called with {count} rows for {self.p.batch_size} images, and Forge "
                              "doesn't say which is which; another extension may have changed them")
        return [Row(image, kind == 0) for kind in kinds for image in range(images)]

    def null(self, size: tuple[int, int]) -> Mapping[str, Tensor]:
        return null_conditioning(shared.sd_model, size)

    def savings(self) -> Savings:
        return Savings(upcast_attention=attention.FORCE_UPCAST_ATTENTION_DTYPE is not None, trusted=TRUSTED)

    def describe(self) -> dict:
        """Everything that the U-Net's output for a source depends on. Patches only apply to the image's calls."""
        patcher = _patcher()
        if sd_unet.current_unet is not None or patcher.object_patches:
            raise ValueError("a part of the U-Net is replaced")
        check_tags(self.p)
        model = patcher.model
        return {
            "checkpoint": file_fingerprint(shared.sd_model.sd_checkpoint_info.filename),
            "weights": _weight_samples(model),
            "networks": [[file_fingerprint(filename), *rest, _patch_samples(patches)]
                         for (filename, *rest), patches in patcher.lora_patches.items()],
            "scripts": other_scripts(self.p), "dtypes": [str(model.storage_dtype), str(model.computation_dtype)],
            "attention": [attention.attention_function.__name__, str(attention.FORCE_UPCAST_ATTENTION_DTYPE)],
        }

    def without_others(self) -> AbstractContextManager:
        return nullcontext()  # ControlNets and patches are arguments of a call, which calls for a source do not have


def _patcher():
    return shared.sd_model.forge_objects.unet


def _weight_samples(model: nn.Module) -> Tensor:
    """One value of every output channel of every layer, without LoRAs, which Forge applies when it samples."""
    originals = model.lora_loader.backup
    return torch.cat([row_samples(originals.get(name, weight)).cpu() for name, weight in model.named_parameters()])


def _patch_samples(patch):
    """A LoRA's tensors and numbers, of each tensor one value of every row. Raises TypeError for anything else.

    The file is not enough: Forge keeps what it has read of a file that has changed since.
    """
    if isinstance(patch, Tensor):
        return row_samples(patch).cpu()
    if isinstance(patch, Mapping):
        return {str(name): _patch_samples(value) for name, value in patch.items()}
    if isinstance(patch, list | tuple):
        return [_patch_samples(value) for value in patch]
    if patch is None or isinstance(patch, str | int | float):
        return patch
    raise TypeError(f"a LoRA has a {type(patch).__name__}")
