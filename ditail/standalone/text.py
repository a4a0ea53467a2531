"""Text encoders of ldm checkpoints: CLIP (SD 1.x) and OpenCLIP (SD 2.x), both on transformers' CLIP text model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DitailError
from .checkpoint_files import OPEN_CLIP, find_text, load_weights, yaml_errors

TOKENS = 75
HEAD = 64
CLIP_PREFIX, OPEN_CLIP_PREFIX = "cond_stage_model.transformer.", "cond_stage_model.model."
# OpenCLIP's names -> transformers' names.
PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
         "attn.out_proj": "self_attn.out_proj"}
OUTER = {"token_embedding.weight": "embeddings.token_embedding.weight",
         "positional_embedding": "embeddings.position_embedding.weight",
         "ln_final.weight": "final_layer_norm.weight", "ln_final.bias": "final_layer_norm.bias"}


@dataclass
class TextEncoder:
    """A CLIP text model and its tokenizer. pad_token: the padding after a prompt's end; None for the end token."""

    model: nn.Module
    tokenizer: Any  # a CLIPTokenizer
    pad_token: int | None = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings `[b, 77 * chunks, width]`; longer prompts take further chunks of 75 tokens, as in the WebUI."""
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        padding = end if self.pad_token is None else self.pad_token
        ids = [self.tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
        chunks = max(1, *(-(-len(i) // TOKENS) for i in ids))
        parts = []
        for c in range(chunks):
            rows = [i[c * TOKENS : (c + 1) * TOKENS] for i in ids]
            rows = [[begin, *row, end, *[padding] * (TOKENS - len(row))] for row in rows]
            parts.append(self.model(torch.tensor(rows, device=device)).last_hidden_state)
        return torch.cat(parts, 1).float()


def build_text(path: Path, config: dict, state: dict[str, Tensor]) -> TextEncoder:
    """The text encoder of a checkpoint's `cond_stage_config`, with its weights."""
    from transformers import CLIPTokenizer

    version = find_text(path, config)
    with folder_errors(path, version):
        tokenizer = CLIPTokenizer.from_pretrained(version)
    if config["target"].endswith(OPEN_CLIP):
        # OpenCLIP's tokenizer pads with zeros, as the WebUI does.
        return TextEncoder(build_open_clip(path, config, state), tokenizer, 0)
    return TextEncoder(build_clip(path, version, state), tokenizer)


def build_clip(path: Path, version: str, state: dict[str, Tensor]) -> nn.Module:
    """The text model of an ldm `FrozenCLIPEmbedder`, whose config is in the folder `version`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with folder_errors(path, version):
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(version))
    prefix = key_prefix(model)
    # transformers 5 dropped `text_model.` from the keys; checkpoints have it.
    weights = {k.removeprefix(CLIP_PREFIX + ("" if prefix else "text_model.")): v for k, v in state.items()
               if k.startswith(CLIP_PREFIX) and not k.endswith("position_ids")}
    load_weights(path, model, weights, CLIP_PREFIX)
    return model


def build_open_clip(path: Path, config: dict, state: dict[str, Tensor]) -> nn.Module:
    """The text model of an ldm `FrozenOpenCLIPEmbedder`; its sizes are taken from the weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    weights = open_clip_weights({k.removeprefix(OPEN_CLIP_PREFIX): v for k, v in state.items()
                                 if k.startswith(OPEN_CLIP_PREFIX)})
    with weight_errors(path):
        vocabulary, width = weights["embeddings.token_embedding.weight"].shape
        layers = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.layers."))
        inner = len(weights["encoder.layers.0.mlp.fc1.bias"])
        positions = len(weights["embeddings.position_embedding.weight"])
    with yaml_errors(path):
        # With "penultimate", the last layer is not used, so it is not built.
        layers -= {"last": 0, "penultimate": 1}[(config.get("params") or {}).get("layer", "last")]
        model = CLIPTextModel(CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=width // HEAD, max_position_embeddings=positions, hidden_act="gelu"))
    prefix = key_prefix(model)
    load_weights(path, model, {prefix + k: v for k, v in weights.items()}, OPEN_CLIP_PREFIX)
    return model


def key_prefix(model: nn.Module) -> str:
    """The prefix of a CLIP text model's weight names in this version of transformers."""
    return "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""


def open_clip_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's text weights under transformers' names; others (`text_projection`) are left out."""
    renamed = {OUTER[k]: v for k, v in weights.items() if k in OUTER}
    for key, value in weights.items():
        if not key.startswith("transformer.resblocks."):
            continue
        number, name = key.removeprefix("transformer.resblocks.").split(".", 1)
        part, _, kind = name.rpartition(".")
        layer = f"encoder.layers.{number}"
        if part in PARTS:
            renamed[f"{layer}.{PARTS[part]}.{kind}"] = value
        elif name.startswith("attn.in_proj_"):
            kind = name.removeprefix("attn.in_proj_")
            for projection, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{projection}_proj.{kind}"] = third
    return renamed


@contextmanager
def folder_errors(path: Path, version: str) -> Iterator[None]:
    """A context that turns errors of reading a text encoder's folder into a DitailError naming it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise DitailError(None, f"{path}: its text encoder's folder {version} can't be read ({error})") from error


@contextmanager
def weight_errors(path: Path) -> Iterator[None]:
    """A context that turns errors of missing weights of the text encoder into a DitailError naming the checkpoint."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise DitailError(None, f"{path}: {OPEN_CLIP_PREFIX}* is missing or of another layout than its yaml "
                          "says") from error
