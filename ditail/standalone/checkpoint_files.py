"""Files of LDM-layout checkpoints: a `.safetensors` file with a `.yaml` beside it, as in the WebUI."""

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import huggingface_hub
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..content.images import LATENT_SCALE
from ..errors import DitailError, shown
from ..method.schedule import TRAINING_STEPS, scaled_linear_alphas_cumprod
from ..unet.families import family_of, shapes_of_file

# The first and the last beta of a schedule, with SD's values.
BETAS = {"linear_start": 0.00085, "linear_end": 0.0120}
# Values of a config that the command line can sample with; the first one is ldm's default.
SUPPORTED = {"parameterization": ("eps", "v"), "beta_schedule": ("linear",), "timesteps": (TRAINING_STEPS,)}
FAMILIES, LATENT_CHANNELS = ("SD 1.x", "SD 2.x"), 4
# "owner/name" on the Hugging Face hub.
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_SECONDS = 5
PROXY_REFUSALS = (403, 407)
TOKENIZER = "openai/clip-vit-large-patch14"
CLIP, OPEN_CLIP = ".FrozenCLIPEmbedder", ".FrozenOpenCLIPEmbedder"


def check_checkpoint(path: str | Path) -> str:
    """The family of a checkpoint (see `unet.families`). Raises DitailError as `load_model` would."""
    path = Path(path)
    check_file(path)
    try:
        shapes = shapes_of_file(str(path))
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    family = family_of(shapes)
    if "SDXL" in family:
        raise DitailError(None, f"{path}: is {family}; its U-Net and conditioner are in the package sgm, which is not "
                          "on PyPI: use it in the WebUI")
    if family not in FAMILIES:
        raise DitailError(None, f"{path}: is {family}; the command line can load {' and '.join(FAMILIES)}")
    channels = shapes["input_blocks.0.0.weight"][1]
    if channels != LATENT_CHANNELS:
        raise DitailError(None, f"{path}: its U-Net has {channels} input channels; models that read an image besides "
                          "the latent (inpainting) work in the WebUI only")
    find_text(path, read_config(path)["cond_stage_config"])
    return family


def check_file(path: Path) -> None:
    """Raise DitailError unless the file exists and is a `.safetensors` file."""
    if not path.is_file():
        raise DitailError(None, f"{path}: does not exist")
    if path.suffix != ".safetensors":
        raise DitailError(None, f"{path}: must be a .safetensors file")


def read_config(path: Path) -> dict:
    """`model.params` of the yaml beside a checkpoint.

    Raises DitailError if a needed part is missing, and for a model that the samplers are not for.
    """
    check_file(path)
    config = path.with_suffix(".yaml")
    if not config.is_file():
        raise DitailError(None, f"{path}: has no {config.name} beside it")
    with yaml_errors(path):
        params = _parse(config.read_text(encoding="utf-8"))["model"]["params"]
        for part in ("unet_config", "first_stage_config", "cond_stage_config"):
            params[part]["target"].split(".")
        read_sides(params)
        read_schedule(params)
    for key, values in SUPPORTED.items():
        if (value := params.get(key, values[0])) not in values:
            raise DitailError(str(config), f"{key} is {shown(value)}; the command line can use "
                              f"{' or '.join(map(repr, values))}")
    return params


@cache
def _parse(text: str) -> dict:
    # A matrix reads the same few configs many times, and PyYAML is slow.
    return yaml.safe_load(text)


@contextlib.contextmanager
def yaml_errors(path: Path) -> Iterator[None]:
    """A context that turns any exception into a DitailError naming the yaml of the checkpoint `path`."""
    try:
        yield
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DitailError(str(path.with_suffix(".yaml")), f"is not the yaml of a latent diffusion model "
                          f"({what[:200]})") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DitailError if it is of another kind or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DitailError:
    return DitailError(None, f"{path}: can't be read; it may be truncated ({error})")


def read_schedule(params: dict) -> Tensor:
    """`alphas_cumprod` `[1000]` of a config's models. Raises ValueError or TypeError unless its betas are in 0..1."""
    # PyYAML reads a number such as 85e-5, without a point, as a text.
    start, end = (float(params.get(key, default)) for key, default in BETAS.items())
    if not (0 < start < 1 and 0 < end < 1):
        raise ValueError(f"{' and '.join(BETAS)} must be between 0 and 1")
    return scaled_linear_alphas_cumprod(start, end)


def read_sides(params: dict) -> tuple[int, int]:
    """(unit, native side) of a config's models, in pixels; sides must be multiples of the unit."""
    levels = len(params["unet_config"]["params"]["channel_mult"])
    return LATENT_SCALE * 2 ** (levels - 1), LATENT_SCALE * int(params.get("image_size", 64))


def load_weights(path: Path, module: nn.Module, weights: dict[str, Tensor], prefix: str, *,
                 assign: bool = False) -> None:
    """Load every weight of `module`. Raises DitailError if one is missing or of another shape.

    assign: as in `load_state_dict`.
    """
    expected = module.state_dict()
    matching = {k: v for k, v in weights.items() if k in expected}
    wrong = [k for k in expected if k not in matching and not k.endswith("position_ids")] + [
        k for k, v in matching.items() if v.shape != expected[k].shape]
    if wrong:
        raise DitailError(None, f"{path}: {prefix}{wrong[0]} is missing or of another shape than its yaml says")
    module.load_state_dict(matching, strict=False, assign=assign)


def find_text(path: Path, config: dict) -> str:
    """The folder with the tokenizer (and CLIP's config) of a text encoder, or its name on the Hugging Face hub.

    Raises DitailError for a folder that does not exist, and for a name that is neither in the hub's cache nor can be
    downloaded: transformers itself would try for minutes.
    """
    if not config["target"].endswith((CLIP, OPEN_CLIP)):
        raise DitailError(None, f"{path}: {config['target']} is not a text encoder that the command line can load")
    with yaml_errors(path):
        version = str((config.get("params") or {}).get("version", TOKENIZER))
        # The last is that of a checkpoint that was moved with its yaml, which names the folder's earlier path.
        for folder in (Path(version), path.parent / version, path.parent / Path(version).name):
            if folder.is_dir():
                return str(folder)
    if config["target"].endswith(OPEN_CLIP):
        version = TOKENIZER  # OpenCLIP's `version` names its training data; its tokenizer is CLIP's
    elif not HUB_NAME.fullmatch(version):
        raise DitailError(str(path.with_suffix(".yaml")), f"its text encoder's folder {version} is not there")
    if not (is_in_hub_cache(version) or is_hub_reachable()):
        raise DitailError(str(path.with_suffix(".yaml")), f"its text encoder {version} is neither a folder nor in the "
                          "cache of downloads, and the Hugging Face hub can't be reached")
    return version


def is_in_hub_cache(name: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)


def is_hub_reachable() -> bool:
    """Whether the hub, or a proxy in front of it, answers within HUB_SECONDS."""
    try:
        urlopen(Request(huggingface_hub.constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
    except HTTPError as error:
        return error.code < 500 and error.code not in PROXY_REFUSALS
    except (OSError, ValueError):
        return False
    return True
