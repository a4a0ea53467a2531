"""SDXL's U-Net at its full size, with random weights in bfloat16 (6 GB of RAM) and a latent of 16x16.

Only with DITAIL_FULL_SIZE=1: it takes minutes.
"""

import os

import pytest
import torch

from ditail.method.inversion import invert
from ditail.method.schedule import InjectionSteps, scaled_linear_alphas_cumprod
from ditail.unet.injection import Injection, inject
from ditail.unet.shortcuts import Savings
from ditail.unet.sites import find_sites

pytestmark = pytest.mark.skipif(os.environ.get("DITAIL_FULL_SIZE") != "1", reason="DITAIL_FULL_SIZE is not 1")
TIMESTEPS = [301, 901]


@pytest.fixture(scope="module")
def unet():
    pytest.importorskip("ldm")
    from lab.counts import SDXL, build

    unet = build(SDXL, "cpu", torch.bfloat16)
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.float()  # the CPU's norms don't mix types, as CUDA's do
    return unet


@torch.no_grad()
def test_sdxl(unet):
    sites = find_sites(unet)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    assert len(sites.attention) == 2 * 10 + 3 * 2 and sites.features[0].name == "output_blocks.1.0.out_layers"

    generator = torch.Generator().manual_seed(0)
    prompt = {"context": torch.randn(1, 77, 2048, generator=generator), "y": torch.randn(1, 2816, generator=generator)}
    null = {"context": torch.zeros(1, 77, 2048), "y": prompt["y"]}

    def run(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            arguments = {k: v.expand(len(x), *v.shape[1:]) for k, v in prompt.items()}
            return unet(x, torch.full((len(x),), float(t)), **arguments).float()

    source = invert(run, torch.randn(1, 4, 16, 16, generator=generator), TIMESTEPS, scaled_linear_alphas_cumprod())
    x = torch.randn(2, 4, 16, 16, generator=generator)
    plain, outputs = run(x, 901), []
    for savings in (Savings(), Savings(early_exit=False, skip_dead=False, share_attention=False)):
        with inject(unet, Injection(source, null, InjectionSteps.from_ratios(TIMESTEPS, 1, 1), savings=savings)):
            outputs.append(run(x, 901))
    assert torch.isfinite(outputs[0]).all()
    difference = (outputs[0] - plain).abs().max()
    assert difference > 0.01 * plain.abs().max()
    assert (outputs[0] - outputs[1]).abs().max() < 0.1 * difference
    assert torch.equal(run(x, 901), plain)
