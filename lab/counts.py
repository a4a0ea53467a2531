"""U-Nets of the real topologies without weights, and the FLOPs of Ditail on them relative to plain generation.

The FLOP counter needs no values, so everything is on torch's meta device and takes seconds. It counts matrix products
and convolutions, which include ldm's einsum attention and Ditail's shared attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ditail.cache.features import FeatureCache
from ditail.method.latents import SourceLatents
from ditail.method.schedule import InjectionSteps, scaled_linear_alphas_cumprod
from ditail.unet.injection import Injection, inject
from ditail.unet.shortcuts import Savings

TOKENS = 77
EVERYTHING = 2**60  # bytes
COMMON = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2, "image_size": 64,
          "use_spatial_transformer": True, "use_checkpoint": False, "legacy": False, "transformer_depth": 1}


@dataclass(frozen=True)
class Topology:
    """A U-Net. config: ldm's arguments. depths: the number of transformer blocks by a level's downsampling factor."""

    name: str
    config: dict
    depths: dict[int, int]
    label_width: int | None = None

    @property
    def width(self) -> int:
        return self.config["context_dim"]


SD15 = Topology("SD 1.5", {**COMMON, "channel_mult": [1, 2, 4, 4], "attention_resolutions": [4, 2, 1], "num_heads": 8,
                           "context_dim": 768}, {1: 1, 2: 1, 4: 1, 8: 1})
# sgm's SDXL built from ldm's modules: three levels, deeper transformers on the lower two, size conditioning.
SDXL = Topology("SDXL", {**COMMON, "channel_mult": [1, 2, 4], "attention_resolutions": [4, 2], "num_head_channels": 64,
                         "num_heads": -1, "context_dim": 2048, "use_linear_in_transformer": True},
                {2: 2, 4: 10}, label_width=2816)


def build(topology: Topology, device: str | torch.device = "meta", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A U-Net of the topology. On a real device its weights are random, which take the same time as trained ones."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    deepest = max(topology.depths.values())

    class Unet(UNetModel):
        """Takes one context for all transformer blocks, like sgm's U-Net."""

        def forward(self, x, timesteps, context, **kwargs):
            return super().forward(x, timesteps, context=[context] * deepest, **kwargs)

    label = {"num_classes": 2} if topology.label_width else {}
    with torch.device("meta"):
        unet = Unet(**topology.config, **label)
        if topology.label_width:
            width = topology.config["model_channels"] * 4
            unet.label_emb = nn.Sequential(nn.Linear(topology.label_width, width), nn.SiLU(), nn.Linear(width, width))
        _deepen(unet, topology)
        unet.time_embed = _TimeEmbedding(*unet.time_embed)
    if torch.device(device).type != "meta":
        unet.to_empty(device=device).to(dtype).apply(_fill)
    return unet.eval().requires_grad_(False)


class _TimeEmbedding(nn.Sequential):
    """Timesteps stay on the CPU, where the injection reads them, also when the U-Net is on the meta device."""

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding.to(self[0].weight.device))


def _deepen(unet: nn.Module, topology: Topology) -> None:
    from ldm.modules.attention import BasicTransformerBlock

    multiples = {m * topology.config["model_channels"]: 2**i for i, m in enumerate(topology.config["channel_mult"])}
    for transformer in [m for m in unet.modules() if hasattr(m, "transformer_blocks")]:
        depth = topology.depths[multiples[transformer.in_channels]] if len(topology.depths) < 4 else 1
        heads = transformer.transformer_blocks[0].attn1.heads
        blocks = [BasicTransformerBlock(transformer.in_channels, heads, transformer.in_channels // heads,
                                        context_dim=topology.width, checkpoint=False) for _ in range(depth)]
        transformer.transformer_blocks = nn.ModuleList(blocks)


def _fill(module: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        with torch.no_grad():
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and name == "weight":
                parameter.fill_(1)
            else:
                parameter.uniform_(-0.02, 0.02)


class Runs:
    """Every kind of step of a job on one U-Net, at one size and batch size, to be counted or timed.

    The cost of a job of `steps` steps is the sum over its kinds of step (see `ratios`).
    """

    def __init__(self, topology: Topology, unet: nn.Module, latent_hw: tuple[int, int], batch: int,
                 savings: Savings | None = None, steps: int = 20, conv_ratio: float = 0.8, attn_ratio: float = 0.5,
                 cache: FeatureCache | None = None):
        self.topology, self.unet, self.latent_hw, self.batch = topology, unet, latent_hw, batch
        self.savings = savings or Savings()
        weight = next(unet.parameters())
        self.like = {"device": weight.device, "dtype": weight.dtype}
        self.steps = steps
        self.both, self.features = int(attn_ratio * steps), int(conv_ratio * steps) - int(attn_ratio * steps)
        # One timestep for each of the three kinds of step, in ascending order: plain, features alone, both.
        abar = scaled_linear_alphas_cumprod()
        self.source = SourceLatents([101, 501, 901], torch.zeros(3, 1, 4, *latent_hw), abar)
        self.injected = InjectionSteps(features_above=300, attention_above=700)
        # Features stay on the device without a limit, as the cost of copying them is not measured here.
        self.cache = FeatureCache(EVERYTHING, weight.device) if cache is None else cache
        self.filled = len(self.cache) == 2

    def arguments(self, rows: int) -> dict[str, Tensor]:
        label = {"y": torch.zeros(rows, self.topology.label_width, **self.like)} if self.topology.label_width else {}
        return {"context": torch.zeros(rows, TOKENS, self.topology.width, **self.like), **label}

    @torch.no_grad()
    def plain(self, rows: int) -> None:
        """One evaluation without injection."""
        self._evaluate(901, rows)

    def _evaluate(self, t: int, rows: int) -> None:
        x = torch.zeros(rows, 4, *self.latent_hw, **self.like)
        on = "cpu" if x.device.type == "meta" else x.device
        self.unet(x, torch.full((rows,), t, device=on), **self.arguments(rows))

    def injection(self, t: int, hot: bool = False) -> Callable[[], None]:
        """A function that runs one injected step at `t`. hot: with the features of an earlier step."""
        features = self.cache.under("bench") if hot else None

        def run() -> None:
            injection = Injection(self.source, self.arguments(1), self.injected, savings=self.savings,
                                  features=features)
            with torch.no_grad(), inject(self.unet, injection):
                self._evaluate(t, 2 * self.batch)

        if hot and not self.filled:
            run()
        return run

    def kinds(self) -> dict[str, Callable[[], None]]:
        """A function for each kind of step."""
        return {
            "plain": lambda: self.plain(2 * self.batch),
            "invert": lambda: self.plain(1),
            "both": self.injection(901),
            "feature": self.injection(501),
            "hot both": self.injection(901, hot=True),
            "hot feature": self.injection(501, hot=True),
            "chunks": lambda: self.plain(3 * self.batch),
            "invert all": lambda: self.plain(self.batch),
        }

    def ratios(self, cost: dict[str, float]) -> dict[str, float]:
        """The costs of a job relative to plain generation, from the costs of the kinds of step."""
        rest = (self.steps - self.both - self.features) * cost["plain"]
        warm = self.both * cost["both"] + self.features * cost["feature"] + rest
        plain = self.steps * cost["plain"]
        return {
            "cold": (self.steps * cost["invert"] + warm) / plain,
            "warm": warm / plain,
            "hot": (self.both * cost["hot both"] + self.features * cost["hot feature"] + rest) / plain,
            "three chunks": (cost["chunks"] + cost["invert all"]) / cost["plain"],
        }


def flops(run: Callable[[], None]) -> int:
    """The FLOPs of one call of `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def flop_ratios(topology: Topology, latent_hw: tuple[int, int], batches: Sequence[int], **settings) -> list[dict]:
    """For each batch size, the FLOPs of a plain evaluation and the `Runs.ratios`. settings: see `Runs`."""
    unet = build(topology)
    # Without injection, FLOPs are proportional to the number of rows.
    row = flops(lambda: Runs(topology, unet, latent_hw, 1).plain(1))
    rows, cache = [], FeatureCache(EVERYTHING, "meta")
    for batch in batches:
        runs = Runs(topology, unet, latent_hw, batch, cache=cache, **settings)
        cost = {"plain": 2 * batch * row, "invert": row, "chunks": 3 * batch * row, "invert all": batch * row}
        cost |= {kind: flops(run) for kind, run in runs.kinds().items() if kind not in cost}
        rows.append({"batch": batch, "plain": cost["plain"], **runs.ratios(cost)})
    return rows
