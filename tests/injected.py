"""Inputs for the small U-Nets, and runs of them under injection."""

from itertools import product

import torch

from ditail import Injection, Savings, SourceLatents, inject
from ditail.method.layers import parse_layers
from ditail.method.schedule import InjectionSteps, scaled_linear_alphas_cumprod
from ditail.unet.rows import SourceRow

ABAR = scaled_linear_alphas_cumprod()
ALWAYS = InjectionSteps(float("-inf"), float("-inf"))
HOOKS = Savings(early_exit=False, skip_dead=False, share_attention=False)
EACH = [Savings(*on) for on in product([True, False], repeat=3) if sum(on) == 1]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conds(rows=1):
    return [randn(rows, 7, 32, seed=s) for s in (11, 12)] + [randn(1, 7, 32, seed=13)]


def rows_like(*images):
    """Source rows of a call: one for each of `images`, None for a row without injection."""
    return lambda rows, call: [SourceRow(image or 0, image is not None) for image in images]


def hooks_on(unet):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def source_latents(rows=1, timesteps=(101, 501, 901), size=(8, 16)):
    return SourceLatents(timesteps, randn(len(timesteps), rows, 4, *size, seed=5), ABAR)


def entry(value=0.0, steps=2, image=None):
    latents = torch.full((steps, 1, 4, 8, 8), float(value))
    return SourceLatents(range(1, steps + 1), latents, scaled_linear_alphas_cumprod(), image=image)


def steps_of(text, conv_ratio=1.0, attn_ratio=1.0, timesteps=(101, 501, 901)):
    return InjectionSteps.from_ratios(timesteps, conv_ratio, attn_ratio, parse_layers(text))


def label(kind, rows=1):
    return {"y": torch.full((rows,), 3)} if kind == "sdxl" else {}


def run(unet, savings=HOOKS, kind="sd1", images=1, x=None, context=None, t=501, **settings):
    """The output of `unet` on rows `x` under injection."""
    x = randn(2, 4, 8, 16, seed=9) if x is None else x
    context = torch.cat(conds()[:2])[: len(x)] if context is None else context
    settings.setdefault("source", source_latents(images))
    injection = Injection(null={"context": conds()[2], **label(kind)}, steps=settings.pop("steps", ALWAYS),
                          savings=savings, **settings)
    with inject(unet, injection):
        return unet(x, torch.full((len(x),), t), context=context, **label(kind, len(x)))


def assert_equal(ours, expected, tolerance=1e-4):
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def rows_run(unet, **settings):
    """(output, how many rows each call of the U-Net took)."""
    rows, conv = [], unet.input_blocks[0][0]
    kind = type(conv)
    conv.__class__ = type("Counted", (kind,), {"forward": lambda self, x: (rows.append(len(x)),
                                                                           kind.forward(self, x))[1]})
    try:
        return run(unet, **settings), rows
    finally:
        conv.__class__ = kind


def source_runs(unet, **settings):
    """(output, how often the source row ran)."""
    output, rows = rows_run(unet, **settings)
    return output, rows.count(1)
