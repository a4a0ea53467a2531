"""The cost that the live line names is what a FLOP counter counts on the real topologies."""

import pytest

from ditail.content.settings import DitailSettings
from ditail.job.cost import cost_of
from lab import counts

STEPS = 20
# Ratios to plain generation, by batch size.
BUDGETS = {
    "SD 1.x": {"cold": {1: 1.76, 4: 1.15, 8: 1.05}, "warm": {1: 1.26, 4: 1.03, 8: 0.99},
               "hot": {1: 0.96, 4: 0.95, 8: 0.95}},
    "SDXL": {"cold": {1: 1.78}, "warm": {1: 1.28}, "hot": {1: 0.98}},
}
TOPOLOGIES = {"SD 1.x": (counts.SD15, (64, 64), (1, 4, 8)), "SDXL": (counts.SDXL, (128, 128), (1, 4))}


@pytest.fixture(scope="module", params=TOPOLOGIES)
def counted(request):
    """The family, and what the counter counts for each batch size; counting takes seconds."""
    topology, latent_hw, batches = TOPOLOGIES[request.param]
    return request.param, counts.flop_ratios(topology, latent_hw, batches, steps=STEPS, conv_ratio=0.8, attn_ratio=0.5)


@pytest.mark.slow
def test_flops_are_within_the_budgets(counted):
    family, rows = counted
    for way, budget in BUDGETS[family].items():
        for row in rows:
            if row["batch"] in budget:
                assert row[way] == pytest.approx(budget[row["batch"]], rel=0.02)
    assert [row["three chunks"] for row in rows] == [2] * len(rows)


@pytest.mark.slow
def test_the_formula_is_what_the_counter_counts(counted):
    family, rows = counted
    for row in rows:
        cost = cost_of(DitailSettings(), STEPS, row["batch"], family=family)
        assert cost.cold == pytest.approx(row["cold"], rel=0.01)
        assert cost.warm == pytest.approx(row["warm"], rel=0.01)


def test_fewer_inversion_steps_and_more_images_cost_less():
    usual = cost_of(DitailSettings(), STEPS)
    assert cost_of(DitailSettings(inversion_steps=0.5), STEPS).cold == pytest.approx(usual.cold - 0.25)
    assert cost_of(DitailSettings(), STEPS, count=4).cold == pytest.approx(usual.warm + 0.5 / 4)
    assert cost_of(DitailSettings(guidance_until=0.5), STEPS).warm < usual.warm - 0.2


def test_a_sum_of_prompts_costs_less_relative_to_a_plain_one():
    """It has three rows to two, and the same source."""
    nothing = cost_of(DitailSettings(conv_ratio=0, attn_ratio=0), STEPS, prompts=2)
    assert nothing.warm == 1 and nothing.cold == pytest.approx(1 + 1 / 3)
    ended = cost_of(DitailSettings(conv_ratio=0, attn_ratio=0, guidance_until=0.5), STEPS, prompts=2)
    assert ended.warm == pytest.approx((3 + 2) / 6)


def test_a_step_without_injection_costs_what_a_plain_one_does():
    nothing = cost_of(DitailSettings(conv_ratio=0, attn_ratio=0), STEPS)
    assert nothing.warm == 1 and nothing.cold == 1.5


def test_a_generated_source_costs_its_generation_for_every_image():
    generated = cost_of(DitailSettings(source="generate", source_latents="kept", conv_ratio=0, attn_ratio=0), STEPS, 4)
    inverted = cost_of(DitailSettings(source="generate", conv_ratio=0, attn_ratio=0), STEPS, 4)
    assert (generated.cold, inverted.cold) == (2, 2.5)
