"""Forge's own U-Nets under injection: equality of every saving with the hook path, and FLOPs. Prints JSON.

Run by Forge's interpreter in Forge's folder. The classes are the real ones; weights are random, or none (FLOPs).
"""

import json
import sys
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORGE_FLAGS = ["--always-cpu", "--attention-pytorch"]
COMMON = {"in_channels": 4, "out_channels": 4, "use_spatial_transformer": True}
SD15 = {**COMMON, "model_channels": 320, "context_dim": 768, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4,
        "num_heads": 8, "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 9 + [0] * 3}
SDXL = {**COMMON, "model_channels": 320, "context_dim": 2048, "channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3,
        "num_head_channels": 64, "num_classes": "sequential", "adm_in_channels": 2816,
        "use_linear_in_transformer": True, "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
SMALL_SD15 = {**SD15, "model_channels": 32, "context_dim": 32, "channel_mult": [1, 2, 2, 2], "num_heads": 4}
SMALL_SDXL = {**SDXL, "model_channels": 32, "context_dim": 32, "num_head_channels": 16, "adm_in_channels": 24}


def build(config: dict, device: str):
    import torch
    from backend.nn.unet import IntegratedUNet2DConditionModel

    from lab.counts import _TimeEmbedding

    class Unet(IntegratedUNet2DConditionModel):
        """With what Forge's sampling hands to each call."""

        def forward(self, x, timesteps=None, context=None, **kwargs):
            kwargs.setdefault("transformer_options", {"cond_or_uncond": [1, 0]})
            return super().forward(x, timesteps, context, **kwargs)

    torch.manual_seed(1)
    with torch.device(device):
        unet = Unet(**{key: list(value) if isinstance(value, list) else value for key, value in config.items()})
    unet.time_embed = _TimeEmbedding(*unet.time_embed)
    return unet.eval().requires_grad_(False)


def run(unet, config: dict, savings, options: dict):
    """The answer of a call with injection of everything, and with these options beside Forge's own."""
    import torch

    from ditail import Injection, SourceLatents, inject
    from ditail.method.schedule import InjectionSteps, scaled_linear_alphas_cumprod

    def randn(*shape, seed):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def y(rows):
        return {"y": randn(rows, config["adm_in_channels"], seed=5)} if "adm_in_channels" in config else {}

    latents = SourceLatents([501], randn(1, 1, 4, 16, 16, seed=1), scaled_linear_alphas_cumprod())
    null = {"context": randn(1, 7, config["context_dim"], seed=2), **y(1)}
    injection = Injection(latents, null, InjectionSteps(-1, -1), savings=savings)
    call = {"context": randn(4, 7, config["context_dim"], seed=4), **y(4),
            "transformer_options": {"cond_or_uncond": [1, 0], **options}}
    with torch.no_grad(), inject(unet, injection):
        return unet(randn(4, 4, 16, 16, seed=3), torch.full((4,), 501.0), **call)


def patches() -> dict[str, dict]:
    """What extensions of Forge put into `transformer_options`; each changes the answer."""
    def attention(q, k, v, _):
        return 1.1 * v

    every = {(name, number): attention for name in ("input", "middle", "output") for number in range(12)}
    return {
        "none": {}, "attn1_patch": {"patches": {"attn1_patch": [lambda q, k, v, _: (1.1 * q, 0.9 * k, 1.1 * v)]}},
        "attn1_output_patch": {"patches": {"attn1_output_patch": [lambda n, _: 1.1 * n]}},
        "output_block_patch": {"patches": {"output_block_patch": [lambda h, skip, _: (1.1 * h, skip)]}},
        "replaced": {"patches_replace": {"attn1": every}},
        "group_norm_wrapper": {"group_norm_wrapper": lambda norm, x, _: 1.1 * norm(x)},
    }


def equality(config: dict) -> dict:
    """By patch: the largest deviation of any savings from the hook path, as a share of what the patch changes."""
    from ditail import Savings
    from ditail.webui.forge.trusted import TRUSTED

    unet, deviations = build(config, "cpu"), {}
    plain = None
    for name, options in patches().items():
        hooks = run(unet, config, Savings(False, False, False, trusted=TRUSTED), options)
        plain = hooks if plain is None else plain
        ours = [run(unet, config, Savings(*on, trusted=TRUSTED), options) for on in product([True, False], repeat=3)]
        largest = max(float((output - hooks).abs().max()) for output in ours)
        deviations[name] = {"off": largest / float(hooks.abs().max()),
                            "effect": float((hooks - plain).abs().max()) / float(hooks.abs().max())}
    return deviations


def flops(config: dict, side: int) -> list[dict]:
    from ditail import FeatureCache, Savings
    from ditail.webui.forge.trusted import TRUSTED
    from lab.counts import EVERYTHING, Runs, Topology
    from lab.counts import flops as count

    unet = build(config, "meta")
    topology = Topology("", config, {}, config.get("adm_in_channels"))
    rows, cache = [], FeatureCache(EVERYTHING, "meta")
    row = count(lambda: Runs(topology, unet, (side, side), 1).plain(1))
    for batch in (1, 4, 8):
        runs = Runs(topology, unet, (side, side), batch, Savings(trusted=TRUSTED), cache=cache)
        cost = {"plain": 2 * batch * row, "invert": row, "chunks": 3 * batch * row, "invert all": batch * row}
        cost |= {kind: count(step) for kind, step in runs.kinds().items() if kind not in cost}
        rows.append({"batch": batch, **runs.ratios(cost)})
    return rows


if __name__ == "__main__":
    sys.path[:0] = [".", "packages_3rdparty", "repositories/huggingface_guess", str(ROOT)]
    quantity, sys.argv = sys.argv[1], [sys.argv[0], *FORGE_FLAGS]
    answers = {"equality": lambda: [equality(SMALL_SD15), equality(SMALL_SDXL)], "sd15": lambda: flops(SD15, 64),
               "sdxl": lambda: flops(SDXL, 128)}
    print("\n" + json.dumps(answers[quantity]()))  # noqa: T201 (what it is run for)
