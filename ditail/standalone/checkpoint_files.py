"""Files of LDM-layout checkpoints: a `.safetensors` with its `.yaml` beside it, as the WebUI takes them."""

import contextlib
import re
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..content.images import LATENT_SCALE
from ..errors import DitailError
from ..method.schedule import scaled_linear_alphas_cumprod

# "owner/name" on the Hugging Face hub.
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_SECONDS = 5


def check_checkpoint(path: str | Path) -> int:
    """The number of output blocks of a checkpoint, from its yaml; raises what `load_model` would, without loading."""
    params = read_config(Path(path))
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    find_text(Path(path), params["cond_stage_config"])
    with blaming_the_yaml(Path(path)):
        unet = params["unet_config"]["params"]
        return len(unet["channel_mult"]) * (unet["num_res_blocks"] + 1)


def read_config(path: Path) -> dict:
    """`model.params` of the yaml beside a checkpoint, checked for the parts that are needed."""
    config = path.with_suffix(".yaml")
    if not path.is_file():
        raise DitailError(None, f"{path}: does not exist")
    if path.suffix != ".safetensors":
        raise DitailError(None, f"{path}: must be a .safetensors file")
    if not config.is_file():
        raise DitailError(None, f"{path}: has no {config.name} beside it")
    with blaming_the_yaml(path):
        params = _parse(config.read_text())["model"]["params"]
        for part in ("unet_config", "first_stage_config", "cond_stage_config"):
            params[part]["target"].split(".")
        read_sides(params)
    return params


@cache
def _parse(text: str) -> dict:
    # A matrix asks for the same few configs many times, and PyYAML takes long.
    return yaml.safe_load(text)


@contextlib.contextmanager
def blaming_the_yaml(path: Path) -> Iterator[None]:
    """Raise DitailError naming the yaml of the checkpoint `path` for whatever its values make the block raise."""
    try:
        yield
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DitailError(str(path.with_suffix(".yaml")), f"is not the yaml of a latent diffusion model "
                          f"({what[:200]})") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DitailError where it is another kind of file or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DitailError:
    return DitailError(None, f"{path}: can't be read; it may be truncated ({error})")


def read_schedule(params: dict) -> Tensor:
    """`alphas_cumprod` `[1000]` of a config's models."""
    return scaled_linear_alphas_cumprod(params.get("linear_start", 0.00085), params.get("linear_end", 0.0120))


def read_sides(params: dict) -> tuple[int, int]:
    """(the unit that sides must be a multiple of, the native side) of a config's models, in pixels."""
    levels = len(params["unet_config"]["params"]["channel_mult"])
    return LATENT_SCALE * 2 ** (levels - 1), LATENT_SCALE * int(params.get("image_size", 64))


def find_text(path: Path, config: dict) -> str:
    """The folder with the tokenizer and the config of a text encoder, or its name on the Hugging Face hub.

    Raises DitailError for a folder that is not there, and for a name that is neither in the hub's cache nor within
    reach: transformers itself would try for minutes.
    """
    if not config["target"].endswith(".FrozenCLIPEmbedder"):
        raise DitailError(None, f"{path}: {config['target']} is not a text encoder that the command line can load")
    with blaming_the_yaml(path):
        version = str((config.get("params") or {}).get("version", "openai/clip-vit-large-patch14"))
        for folder in (Path(version), path.parent / version):
            if folder.is_dir():
                return str(folder)
    if not HUB_NAME.fullmatch(version):
        raise DitailError(str(path.with_suffix(".yaml")), f"its text encoder's folder {version} is not there")
    if not (is_in_hub_cache(version) or is_hub_reachable()):
        raise DitailError(str(path.with_suffix(".yaml")), f"its text encoder {version} is neither a folder nor in the "
                          "cache of downloads, and the Hugging Face hub can't be reached")
    return version


def is_in_hub_cache(name: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)


def is_hub_reachable() -> bool:
    """Whether something answers at the hub's address; behind a proxy only a download can tell."""
    url = urlsplit(huggingface_hub.constants.ENDPOINT)
    if getproxies().get(url.scheme):
        return True
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True
