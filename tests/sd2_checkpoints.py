"""Small SD 2.x checkpoints with random weights, in the layout of the published ones."""

import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from tests.unets import SD2, random_unet

WIDTH, LAYERS, VOCABULARY = 64, 3, 49408
NATIVE = 16


class ResidualAttentionBlock(nn.Module):
    """OpenCLIP's, with its names."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenClipText(nn.Module):
    """OpenCLIP's text tower: what ldm's `FrozenOpenCLIPEmbedder` calls `self.model`."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(77, WIDTH) * 0.1)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(ResidualAttentionBlock() for _ in range(LAYERS))})
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.logit_scale = nn.Parameter(torch.ones([]))

    @torch.no_grad()
    def forward(self, tokens, layers):
        """Embeddings `[b, 77, width]` after so many of the blocks."""
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((77, 77), float("-inf")).triu(1)
        for block in self.transformer["resblocks"][:layers]:
            x = block(x, mask)
        return self.ln_final(x)


def open_clip(seed: int) -> OpenClipText:
    torch.manual_seed(seed)
    model = OpenClipText().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.05)
    return model


def config_of(demo: dict, text: Path, parameterization: str) -> dict:
    """A yaml as the WebUI's `v2-inference.yaml` (-v), with the demo's VAE. text: the tokenizer's folder."""
    unet = {**SD2, "context_dim": WIDTH, "use_fp16": True, "num_heads": -1}
    params = {**demo["model"]["params"], "image_size": NATIVE, "parameterization": parameterization}
    params["unet_config"] = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet}
    params["cond_stage_config"] = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
                                   "params": {"freeze": True, "layer": "penultimate", "version": str(text)}}
    return {"model": {**demo["model"], "params": params}}


def write_checkpoint(path: Path, demo: Path, seed: int, parameterization: str = "v") -> Path:
    """Write an SD 2.x checkpoint and its yaml. demo: a demo checkpoint, whose VAE and tokenizer it takes."""
    weights = {k: v for k, v in load_file(demo).items() if k.startswith("first_stage_model.")}
    unet = random_unet({**SD2, "context_dim": WIDTH}, seed)
    weights |= {f"model.diffusion_model.{k}": v.clone() for k, v in unet.state_dict().items()}
    weights |= {f"cond_stage_model.model.{k}": v.clone() for k, v in open_clip(seed).state_dict().items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, path)
    config = yaml.safe_load(demo.with_suffix(".yaml").read_text())
    text = Path(config["model"]["params"]["cond_stage_config"]["params"]["version"])
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config_of(config, text, parameterization)))
    return path


def copied(checkpoint: Path, folder: Path, name: str = "other") -> Path:
    """A checkpoint with its yaml under another name."""
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(checkpoint.with_suffix(suffix), folder / f"{name}{suffix}")
    return folder / f"{name}.safetensors"
