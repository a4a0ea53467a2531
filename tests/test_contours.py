"""Contours: the high band of x_0 moved toward the content's, at the U-Net's output."""

import pytest
import torch

from ditail import SourceLatents
from ditail.method.blending import WeightedSource
from ditail.method.contours import Contours, high_band
from ditail.method.prediction import Prediction
from ditail.method.schedule import InjectionSteps, alphas_cumprod_at
from tests.injected import ABAR, ALWAYS, HOOKS, conds, hooks_on, randn, rows_like, run, source_runs
from tests.unets import SD1, random_unet

T = 501
NEVER = InjectionSteps(float("inf"), float("inf"))
Z0 = randn(3, 4, 8, 16, seed=21)


@pytest.fixture(scope="module")
def unet():
    return random_unet(SD1, 0)


def source(rows=1, seed=5):
    return SourceLatents((101, 501, 901), randn(3, rows, 4, 8, 16, seed=seed), ABAR, z0=Z0[:rows])


def moved(unet, strength=1.0, above=float("-inf"), is_v=False, **settings):
    settings.setdefault("source", source())
    return run(unet, contours=Contours(strength, above, Prediction(ABAR, is_v)), **{"steps": NEVER, **settings})


def x0_of(output, x, is_v=False):
    abar = float(alphas_cumprod_at(ABAR, torch.tensor([T])))
    a, s = abar**0.5, (1 - abar) ** 0.5
    return a * x - s * output if is_v else (x - s * output) / a


@pytest.mark.parametrize("is_v", [False, True])
def test_the_high_band_of_x0_is_moved_and_the_low_band_is_not(unet, is_v):
    x = randn(2, 4, 8, 16, seed=9)
    plain = x0_of(run(unet, steps=NEVER), x, is_v)
    for strength in (1.0, 0.25):
        x0 = x0_of(moved(unet, strength, is_v=is_v), x, is_v)
        assert torch.allclose(x0, plain + strength * high_band(Z0[:1] - plain), atol=1e-4)
    assert torch.allclose(high_band(torch.full((1, 4, 8, 16), 3.0)), torch.zeros(1, 4, 8, 16), atol=1e-6)


def test_cfg_passes_the_change_on_unscaled(unet):
    """Also with injection into the cond row only, and cond and uncond in calls of their own."""
    x = randn(1, 4, 8, 16, seed=9).expand(2, -1, -1, -1)
    rows = {"x": x, "steps": ALWAYS, "source_rows": rows_like(None, 0)}
    neg, pos = run(unet, source=source(), **rows)
    guided = x0_of(neg + 5 * (pos - neg), x[:1])
    together = moved(unet, 0.5, **rows)
    apart = [moved(unet, 0.5, x=x[:1], context=context, steps=ALWAYS, source_rows=rows_like(image))[0]
             for context, image in zip(conds()[:2], (None, 0), strict=True)]
    for neg, pos in (together, apart):
        assert torch.allclose(x0_of(neg + 5 * (pos - neg), x[:1]), guided + 0.5 * high_band(Z0[:1] - guided), atol=1e-3)


def test_each_row_moves_toward_its_own_image(unet):
    x, context = randn(4, 4, 8, 16, seed=9), randn(4, 7, 32, seed=8)
    images = [2, 0, 2, 1]
    for order in ([2, 0, None, 1], images):
        together = moved(unet, source=source(3), x=x, context=context, source_rows=rows_like(*order))
        for row in range(4):
            image = order[row] or 0
            alone = moved(unet, source=SourceLatents((501,), randn(1, 1, 4, 8, 16), ABAR, z0=Z0[image : image + 1]),
                          x=x[row : row + 1], context=context[row : row + 1])
            assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_only_early_steps_and_only_under_the_mask(unet):
    plain = run(unet, steps=NEVER)
    assert torch.equal(moved(unet, above=T), plain)
    assert not torch.equal(moved(unet, above=T - 1), plain)
    mask = torch.zeros(1, 1, 8, 16)
    mask[..., :8] = 1
    part = moved(unet, mask=mask)
    assert torch.equal(part[..., 8:], plain[..., 8:])
    assert torch.equal(part[..., :8], moved(unet)[..., :8])


def test_the_content_of_a_mix_is_mixed(unet):
    left = torch.zeros(1, 1, 8, 16)
    left[..., :8] = 1
    other = SourceLatents((501,), randn(1, 1, 4, 8, 16), ABAR, z0=Z0[1:2])
    mixed = moved(unet, source=[WeightedSource(source(), mask=1 - left), WeightedSource(other, mask=left)])
    x0 = torch.cat([Z0[1:2, ..., :8], Z0[:1, ..., 8:]], -1)
    alone = moved(unet, source=SourceLatents((501,), randn(1, 1, 4, 8, 16), ABAR, z0=x0))
    assert torch.allclose(mixed, alone, atol=1e-4)


def test_no_further_call_and_no_hook_remains(unet):
    settings = {"source": source(), "contours": Contours(0.5, 0, Prediction(ABAR))}
    for savings in (HOOKS, None):
        savings = {"savings": savings} if savings else {}
        assert source_runs(unet, steps=ALWAYS, **settings, **savings)[1] == 1
        assert source_runs(unet, steps=NEVER, **settings, **savings)[1] == 0
    assert hooks_on(unet) == 0 and not unet._forward_hooks_with_kwargs


def test_half_precision_is_kept(unet):
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = moved(unet), run(unet, steps=NEVER)
    assert output.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(output.float(), moved(unet), atol=0.1)
