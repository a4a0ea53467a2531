"""Text encoders of ldm checkpoints: CLIP (SD 1.x) and OpenCLIP (SD 2.x), both on transformers' CLIP text model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DitailError
from .checkpoint_files import OPEN_CLIP, blaming_the_yaml, find_text, load_weights

TOKENS = 75
HEAD = 64
CLIP_PREFIX, OPEN_CLIP_PREFIX = "cond_stage_model.transformer.", "cond_stage_model.model."
# OpenCLIP's names of a block's parts, and transformers'.
PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
         "attn.out_proj": "self_attn.out_proj"}
OUTER = {"token_embedding.weight": "embeddings.token_embedding.weight",
         "positional_embedding": "embeddings.position_embedding.weight",
         "ln_final.weight": "final_layer_norm.weight", "ln_final.bias": "final_layer_norm.bias"}


@dataclass
class TextEncoder:
    """A CLIP text model and its tokenizer. pad_token: what follows a prompt's end; None for the end token again."""

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
    with blaming_the_folder(path, version):
        tokenizer = CLIPTokenizer.from_pretrained(version)
    if config["target"].endswith(OPEN_CLIP):
        # OpenCLIP's tokenizer pads with zeros, as the WebUI does.
        return TextEncoder(build_open_clip(path, config, state), tokenizer, 0)
    return TextEncoder(build_clip(path, version, state), tokenizer)


def build_clip(path: Path, version: str, state: dict[str, Tensor]) -> nn.Module:
    """The text model of an ldm `FrozenCLIPEmbedder`, whose config is in the folder `version`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with blaming_the_folder(path, version):
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(version))
    level = level_of(model)
    # transformers 5 dropped the `text_model.` level from the keys; checkpoints have it.
    weights = {k.removeprefix(CLIP_PREFIX + ("" if level else "text_model.")): v for k, v in state.items()
               if k.startswith(CLIP_PREFIX) and not k.endswith("position_ids")}
    load_weights(path, model, weights, CLIP_PREFIX)
    return model


def build_open_clip(path: Path, config: dict, state: dict[str, Tensor]) -> nn.Module:
    """The text model of an ldm `FrozenOpenCLIPEmbedder`; its sizes are those of the weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    weights = open_clip_weights({k.removeprefix(OPEN_CLIP_PREFIX): v for k, v in state.items()
                                 if k.startswith(OPEN_CLIP_PREFIX)})
    with blaming_the_weights(path):
        vocabulary, width = weights["embeddings.token_embedding.weight"].shape
        layers = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.layers."))
        inner = len(weights["encoder.layers.0.mlp.fc1.bias"])
        positions = len(weights["embeddings.position_embedding.weight"])
    with blaming_the_yaml(path):
        # The last layer's output is not used, and then neither is the layer.
        layers -= {"last": 0, "penultimate": 1}[(config.get("params") or {}).get("layer", "last")]
        model = CLIPTextModel(CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=width // HEAD, max_position_embeddings=positions, hidden_act="gelu"))
    level = level_of(model)
    load_weights(path, model, {level + k: v for k, v in weights.items()}, OPEN_CLIP_PREFIX)
    return model


def level_of(model: nn.Module) -> str:
    """What this version of transformers puts before the names of a CLIP text model's weights."""
    return "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""


def open_clip_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's text weights under transformers' names; what it has besides (`text_projection`) is left out."""
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
def blaming_the_folder(path: Path, version: str) -> Iterator[None]:
    """Raise DitailError naming a text encoder's folder for what transformers can't read in it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise DitailError(None, f"{path}: its text encoder's folder {version} can't be read ({error})") from error


@contextmanager
def blaming_the_weights(path: Path) -> Iterator[None]:
    """Raise DitailError naming the checkpoint for weights that the text encoder of its yaml needs and that lack."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise DitailError(None, f"{path}: {OPEN_CLIP_PREFIX}* is missing or of another layout than its yaml "
                          "says") from error
