"""The WebUI's models: finding the source's, borrowing it through the WebUI's own loading, and calling it."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from modules import (
    devices,
    extra_networks,
    processing,
    prompt_parser,
    sd_hijack,
    sd_models,
    sd_samplers,
    sd_vae,
    shared,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import DitailError, named
from ..images import LATENT_SCALE
from ..inversion import combine_conds
from ..schedule import alphas_cumprod_at
from ..settings import BY_KEY

log = logging.getLogger("ditail")

UNET_PREFIX = "model.diffusion_model."
# Everything in the settings that changes what a model or a text encoder computes.
OPTIONS_THAT_COUNT = (
    "CLIP_stop_at_last_layers", "comma_padding_backtrack", "emphasis", "fp8_storage", "sd_hypernetwork", "sd_lora",
    "sd_noise_schedule", "sd_vae_encode_method", "sdxl_clip_l_skip", "sdxl_crop_left", "sdxl_crop_top", "upcast_attn",
    "use_downcasted_alpha_bar", "use_old_emphasis_implementation", "use_old_scheduling",
)
SUPPORTED = ("SD 1.x", "SD 2.x", "SDXL")
KNOWN = "SD 1.x, SD 2.x or SDXL"
# Architectures without the blocks that Ditail needs, by a parameter that only they have.
TRANSFORMERS = {"SD3": "x_embedder.proj.weight", "Flux": "double_blocks.0.img_mod.lin.weight"}
# Checkpoints that read a picture besides the latent, by their U-Net's input channels.
READS_A_PICTURE = {5: "a depth model", 8: "InstructPix2Pix"}


def find_checkpoint(name: str):
    """The WebUI's CheckpointInfo for a title, name or hash; None for "". Raises DitailError if there is none."""
    if not name:
        return None
    BY_KEY["source_checkpoint"].check(name)  # its length: the pattern below takes its square
    plain = sd_models.re_strip_checksum.sub("", name)
    info = sd_models.checkpoint_aliases.get(name) or sd_models.checkpoint_aliases.get(plain)
    if info is None:
        raise DitailError(f'source_checkpoint: there is no checkpoint "{named(name)}"', "source_checkpoint")
    if not os.path.isfile(info.filename):
        raise DitailError(f"source_checkpoint: the file of {info.name} is gone", "source_checkpoint")
    return info


def find_vae(name: str) -> str:
    """A value for the WebUI's `sd_vae` option. Raises DitailError for a VAE that is not there."""
    if name in ("", "Automatic", "None"):
        return name or "Automatic"
    path = sd_vae.vae_dict.get(name)
    if path is None or not os.path.isfile(path):
        raise DitailError(f'source_vae: there is no VAE "{named(name)}"', "source_vae")
    return name


def check_architecture(info, unet: nn.Module) -> None:
    """Raise DitailError unless the target and the checkpoint are of one family that Ditail knows.

    Of the checkpoint only the file's header is read; a pickle has none, so `borrowed_models` looks again.
    """
    target, wanted = shared.sd_model.sd_checkpoint_info, _family_of_target(unet)
    if not info.is_safetensors:
        return
    try:
        with safe_open(info.filename, "pt") as file:
            names = [k for k in file.keys() if k.startswith(UNET_PREFIX)]  # noqa: SIM118 (not a dict)
            shapes = {k[len(UNET_PREFIX):]: file.get_slice(k).get_shape() for k in names}
    except (SafetensorError, OSError) as error:
        raise _wrong_source(info, f"can't be read ({error})") from error
    _check_family(info, family_of(shapes), target, wanted)


def family_of(shapes: Mapping[str, Sequence[int]]) -> str:
    """The family of a U-Net by its parameters' names and shapes; "of no known family" for what is none.

    SD 2.x is told from SD 1.x by the linear projections of its transformers, which are convolutions in SD 1.x.
    """
    for name, mark in TRANSFORMERS.items():
        if mark in shapes:
            return name
    channels = shapes.get("input_blocks.0.0.weight", (0, 4))[1]
    if channels in READS_A_PICTURE:
        return READS_A_PICTURE[channels]
    blocks = 1 + max((int(k.split(".")[1]) for k in shapes if k.startswith("output_blocks.")), default=-1)
    if blocks == 9:
        return "SDXL"
    projection = next((s for k, s in shapes.items() if k.endswith("proj_in.weight")), ())
    if blocks != 12 or not projection:
        return "of no known family"
    if any(".transformer_blocks.1." in k for k in shapes):
        return "an SDXL refiner"
    return "SD 1.x" if len(projection) == 4 else "SD 2.x"


def _family_of(unet: nn.Module) -> str:
    return family_of({name: parameter.shape for name, parameter in unet.named_parameters()})


def _family_of_target(unet: nn.Module) -> str:
    family = _family_of(unet)
    if family not in SUPPORTED:
        raise DitailError(f"the target {shared.sd_model.sd_checkpoint_info.name_for_extra} is {family}: Ditail needs "
                          f"a checkpoint of {KNOWN}")
    return family


def _check_family(info, family: str, target, wanted: str) -> None:
    if family not in SUPPORTED:
        raise _wrong_source(info, f"is {family}: Ditail needs a checkpoint of {KNOWN}")
    if family != wanted:
        raise _wrong_source(info, f"is {family}, the target {target.name_for_extra} is {wanted}")


def _wrong_source(info, what: str) -> DitailError:
    return DitailError(f"source_checkpoint: {info.name_for_extra} {what}", "source_checkpoint")


def vae_file_of(info, vae: str) -> str | None:
    """The file of the VAE that a source checkpoint is used with; None for the checkpoint's own.

    vae: see `find_vae`. This is `sd_vae.resolve_vae` for a choice of ours: that function reads the WebUI's settings,
    which belong to every thread and to `config.json`, so they are not changed for it.
    """
    if shared.cmd_opts.vae_path is not None:
        return shared.cmd_opts.vae_path
    if vae != "Automatic":
        return sd_vae.vae_dict.get(vae)
    chosen = sd_vae.resolve_vae_from_user_metadata(info.filename)
    return chosen.vae if chosen.resolved else sd_vae.find_vae_near_checkpoint(info.filename)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint and the file of its VAE (None: its own) as they are in place."""

    info: object
    vae_file: str | None

    @classmethod
    def now(cls) -> "Loaded":
        # Not `shared.sd_model`, which loads one where there is none.
        return cls(getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None), sd_vae.loaded_vae_file)

    def check_files(self) -> None:
        """Raise DitailError unless both can be loaded again after others took their place."""
        for path in filter(None, (getattr(self.info, "filename", None), self.vae_file)):
            try:
                # A safetensors header names the file's length, so this also finds one that was cut off.
                with safe_open(path, "pt") if path.endswith(".safetensors") else open(path, "rb"):
                    pass
            except (SafetensorError, OSError) as error:
                raise DitailError(f"source_checkpoint: {os.path.basename(path)} is in use and could not be loaded back "
                                  f"after another model ({error})", "source_checkpoint") from error


@contextmanager
def restored_models(p=None, *, is_sound: Callable[[BaseException], bool]) -> Iterator[Loaded]:
    """A block that may load other models: yields what is in place, which is in place again afterwards.

    is_sound: whether the model that is in place can be trusted when this is raised in the block; otherwise the one of
    before is loaded anew. So it is if putting it back raises. If loading it anew raises too, the WebUI is left without
    a model, which makes its next job load one, and DitailError is raised.
    """
    before = Loaded.now()
    try:
        yield before
    except BaseException as error:
        _put_back(before, p, anew=not is_sound(error))
        raise
    else:
        _put_back(before, p)


def _put_back(before: Loaded, p, *, anew: bool = False) -> None:
    if Loaded.now() != before:
        log.info("%s: back in place as the target", before.info.name_for_extra)
    try:
        if not anew:
            return switch_to(before, p)
    except Exception:
        log.exception("loading %s back", before.info.name)
    except BaseException:
        _forget_models()
        raise
    _forget_models()
    try:
        with sd_models.SkipWritingToConfig():
            sd_models.load_model(before.info)
        switch_to(before, p)
    except BaseException as error:
        _forget_models()
        raise DitailError(f"{before.info.name_for_extra} can't be loaded back ({error}); the next image loads it again",
                          "source_checkpoint") from error


def _forget_models() -> None:
    """Leave the WebUI as it is at its start, without a model: whoever needs one next loads that of the settings."""
    data = sd_models.model_data
    for model in {data.sd_model, *data.loaded_sd_models} - {None}:
        with suppress(Exception):  # it only frees memory, and what is wrong with a model may be anything
            sd_models.send_model_to_trash(model)
    data.sd_model, data.was_loaded_at_least_once = None, False
    data.loaded_sd_models.clear()
    sd_vae.delete_base_vae()
    sd_vae.clear_loaded_vae()


@contextmanager
def borrowed_models(p) -> Iterator[Callable[..., object]]:
    """For a block, a function `(checkpoint, vae_file, why) -> model` that puts source models in place one by one.

    It raises DitailError if one can't be loaded, and before anything is unloaded if the target could not come back;
    nothing is loaded that is in place already. Afterwards the target is back (see `restored_models`).
    """
    wanted, is_loading = _family_of_target(shared.sd_model.model.diffusion_model), False
    # The WebUI may believe a half-dismantled model to be loaded after whatever ended the loading, an interrupt, too.
    with restored_models(p, is_sound=lambda error: not is_loading) as target:

        def borrow(info, vae_file: str | None, why: str):
            nonlocal is_loading
            log.info("%s: %s", info.name_for_extra, why)
            source = Loaded(info, vae_file)
            if source != Loaded.now():
                target.check_files()
            is_loading = True
            try:
                switch_to(source, p)
            except Exception as error:
                log.exception("loading %s", info.name)
                raise _wrong_source(info, f"can't be loaded ({error})") from error
            is_loading = False
            _check_family(info, _family_of(shared.sd_model.model.diffusion_model), target.info, wanted)
            return shared.sd_model

        yield borrow


def switch_to(wanted: Loaded, p=None) -> None:
    """Put a checkpoint with its VAE in place, as job `p` needs it."""
    with sd_models.SkipWritingToConfig():
        sd_models.reload_model_weights(info=wanted.info)
        sd_vae.reload_vae_weights(vae_file=wanted.vae_file)
    if p is None:
        return
    # A checkpoint with its own yaml is a new model object, which these have not been done to.
    sd_models.apply_alpha_schedule_override(shared.sd_model)
    sd_hijack.model_hijack.apply_circular(p.tiling)
    without_hypertile(p)


def without_hypertile(p) -> list:
    """Switch hypertile off in the model that is loaded: it draws tiles anew for each call, so q and k would not fit.

    Its script sets this anew at the start of each job and of a second pass. Returns what was switched off.
    """
    found = (getattr(module, "__webui_hypertile_params", None) for module in shared.sd_model.model.modules())
    enabled = [params for params in found if params is not None and params.enabled]
    for params in enabled:
        params.enabled = False
        p.comment("Ditail: hypertile is off for this job")
    return enabled


def without_token_merging(p) -> float:
    """Take token merging off the model that is loaded (the WebUI does so at a job's end); returns its ratio."""
    ratio = getattr(shared.sd_model, "applied_token_merged_ratio", 0)
    if ratio:
        sd_models.apply_token_merging(shared.sd_model, 0)
        p.comment("Ditail: token merging is off for this job")
    return ratio


def merges_tokens(model) -> bool:
    """Whether token merging or hypertile is at work in a model."""
    found = (getattr(module, "__webui_hypertile_params", None) for module in model.model.modules())
    return bool(getattr(model, "applied_token_merged_ratio", 0)) or any(params and params.enabled for params in found)


@contextmanager
def whole_attention(p) -> Iterator[None]:
    """Run a block without hypertile and token merging, which change what the attention sees."""
    ratio, tiled = without_token_merging(p), without_hypertile(p)
    try:
        yield
    finally:
        for params in tiled:
            params.enabled = True
        if ratio:
            sd_models.apply_token_merging(shared.sd_model, ratio)


@contextmanager
def active_extra_networks(p, data: dict) -> Iterator[None]:
    """Run a block with the extra networks `data` (LoRA, ...) and no others."""
    if p.disable_extra_networks:
        yield
        return
    stand_in = processing.StableDiffusionProcessingTxt2Img()
    stand_in.all_prompts = []
    with ExitStack() as undo:
        # Undone last first: without networks, then the deactivation, each also if the one before it raises.
        undo.callback(lambda: [p.comment(comment) for comment in stand_in.comments])
        undo.callback(extra_networks.deactivate, stand_in, {})
        undo.callback(extra_networks.activate, stand_in, {})
        with devices.autocast():
            extra_networks.activate(stand_in, data)
        yield


@contextmanager
def untouched_prompt_notes() -> Iterator[None]:
    """Encoding a prompt leaves comments and infotext for the picture; those of other prompts are not its own."""
    hijack = sd_hijack.model_hijack
    comments, params = hijack.comments, hijack.extra_generation_params
    hijack.comments, hijack.extra_generation_params = [], {}
    try:
        yield
    finally:
        hijack.comments, hijack.extra_generation_params = comments, params


@torch.no_grad()
def encode(model, pixels: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """`z_0` `[1, 4, h, w]` of pixels `[1, 3, H, W]` in -1..1: the posterior's mean, float32."""
    model.first_stage_model.to(devices.dtype_vae)
    # SDXL's encoder samples its posterior; a fixed seed makes that repeatable.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoding = model.encode_first_stage(pixels.to(devices.device, devices.dtype_vae))
        # A tensor (SDXL) is a sample already, scaled; it has a `mode`, too.
        is_sample = isinstance(encoding, Tensor)
        z0 = model.get_first_stage_encoding(encoding) if is_sample else model.scale_factor * encoding.mode()
    if not torch.isfinite(z0).all():
        raise DitailError("source_vae: the VAE gives no finite latent for the content image; try --no-half-vae or "
                          "another VAE", "source_vae")
    if z0.shape[-2:] != latent_size:
        # img2img's "latent upscale" encodes the picture at its own size.
        z0 = nn.functional.interpolate(z0.float(), latent_size, mode="bilinear")
    return z0.float()


@torch.no_grad()
def source_denoiser(model, prompts: tuple[str, str], alpha: float, beta: float, size: tuple[int, int],
                    timesteps: tuple[float, ...]) -> Callable[[Tensor, float], Tensor]:
    """`(z, t) -> eps` of a model under `alpha * C_pos - beta * C_neg`; prompt editing follows the steps."""
    steps = len(timesteps)
    positive, negative = (_schedule(model, text, steps, size, is_negative)
                          for text, is_negative in zip(prompts, (False, True), strict=True))
    order = {t: steps - 1 - i for i, t in enumerate(sorted(timesteps))}
    abar = model.alphas_cumprod
    image_cond = _image_conditioning(model, size)

    def denoise(z: Tensor, t: float) -> Tensor:
        cond = {**_combined(alpha, positive(order[t]), beta, negative(order[t])), **image_cond}
        out = model.apply_model(z, torch.full((len(z),), t, device=z.device), cond).float()
        if getattr(model, "parameterization", "eps") != "v":
            return out
        at = float(alphas_cumprod_at(abar, torch.tensor([t], dtype=torch.float64)))
        return at**0.5 * out + (1 - at) ** 0.5 * z

    return denoise


def _image_conditioning(model, size: tuple[int, int]) -> dict:
    """What txt2img gives a model that reads a picture too (inpainting: everything masked); others ignore it."""
    latent = torch.zeros(1, 4, size[1] // LATENT_SCALE, size[0] // LATENT_SCALE, device=devices.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # it encodes a grey picture, and samples
        found = processing.txt2img_image_conditioning(model, latent, *size)
    return {"c_adm": found} if model.model.conditioning_key == "crossattn-adm" else {"c_concat": [found]}


def _schedule(model, text: str, steps: int, size: tuple[int, int], is_negative: bool):
    """A prompt's conditioning by step. Prompts that `AND` composes are one list of words here."""
    parts = [prompt_parser.re_weight.search(part).group(1) for part in prompt_parser.re_AND.split(text)]
    texts = prompt_parser.SdConditioning([", ".join(parts)], is_negative, *size)
    with devices.autocast():
        conds = prompt_parser.get_learned_conditioning(model, texts, steps, None, shared.opts.use_old_scheduling)
    return lambda step: prompt_parser.reconstruct_cond_batch(conds, step)


def _combined(alpha: float, cond, beta: float, uncond) -> dict:
    if isinstance(cond, dict):
        return {**cond, "crossattn": combine_conds(alpha, cond["crossattn"], beta, uncond["crossattn"])}
    return {"c_crossattn": [combine_conds(alpha, cond, beta, uncond)]}


@torch.no_grad()
def null_conditioning(model, size: tuple[int, int]) -> dict[str, Tensor]:
    """The U-Net's keyword arguments for "" in the model's own text encoder."""
    with devices.autocast():
        cond = model.get_learned_conditioning(prompt_parser.SdConditioning([""], True, *size))
    if isinstance(cond, dict):
        return {"context": devices.cond_cast_unet(cond["crossattn"]), "y": devices.cond_cast_unet(cond["vector"])}
    return {"context": devices.cond_cast_unet(cond)}


def fingerprint(p, info, vae_file: str | None, prompts: tuple[str, str], networks: dict) -> dict:
    """What the source model's answers depend on, for the cache's key."""
    options = {key: shared.opts.data.get(key, shared.opts.get_default(key)) for key in OPTIONS_THAT_COUNT
               if key in shared.opts.data_labels}
    return {
        "checkpoint": file_mark(info.filename), "vae": file_mark(vae_file), "prompts": prompts, "options": options,
        "networks": {name: [[*map(str, n.items), file_mark(_network_file(n.items[0]))] for n in found]
                     for name, found in networks.items()},
        "embeddings": {name: e.checksum() for name, e in sd_hijack.model_hijack.embedding_db.word_embeddings.items()
                       if any(name in text for text in prompts)},
        "dtypes": [str(devices.dtype_unet), str(devices.dtype_vae)], "tiling": bool(p.tiling),
        "attention": str(sd_hijack.model_hijack.optimization_method),
    }


def file_mark(path: str | None) -> list:
    """What tells a file from what it was before it changed; just the name where there is none."""
    if not path or not os.path.isfile(path):
        return [path]
    stat = os.stat(path)
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]


def _network_file(name: str) -> str | None:
    """The file of a LoRA, from the WebUI's built-in extension if that is loaded."""
    lora = sys.modules.get("networks")
    found = getattr(lora, "available_network_aliases", {}).get(name)
    return getattr(found, "filename", None)


def sampler_for(p):
    """A new sampler of `p` for the model that is loaded now."""
    return sd_samplers.create_sampler(p.sampler_name, shared.sd_model)
