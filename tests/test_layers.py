"""Layers and steps of one's own: the text, what an architecture has, and injection of any choice."""

import pytest
import torch

from ditail import DitailError, FeatureCache, Injection, Savings, inject
from ditail.method.layers import Layer, parse_layers
from ditail.method.schedule import Window, ddim_timesteps
from ditail.unet.sites import find_sites
from tests.injected import EACH, HOOKS, assert_equal, conds, randn, run, source_latents, source_runs, steps_of

DEFAULTS = {"sd1": "f4 a4-11", "sd2": "f4 a4-11", "sdxl": "f1 a1-5"}
# Features before and after attention, several, none of one kind; Ctrl-X's for SDXL.
CHOICES = [("sd1", "f4 a4-8 a9-11@0-0.3"), ("sd1", "a3 f7 f2 f11"), ("sd1", "a11"), ("sd1", "f0"), ("sd2", "a4-11"),
           ("sd2", "f5-6 a5"), ("sdxl", "f0 a0-2"), ("sdxl", "f8 a0@0-1")]


def named(text):
    return {f"{layer.kind}{layer.block}": steps for layer, steps in parse_layers(text).items()}


def test_a_line_names_blocks_and_their_steps():
    assert named("") == named("  ") == {}
    assert named("f4 a9-10@0.2-.6  a4") == {"f4": None, "a9": (0.2, 0.6), "a10": (0.2, 0.6), "a4": None}
    assert named("f0-1@0-1") == {"f0": (0, 1), "f1": (0, 1)}


@pytest.mark.parametrize(("text", "what"), [
    ("f4 x4", '"x4": must begin with f'), ("f4,a4-8", '"f4,a4-8": must look like'), ("F4", '"F4": must begin'),
    ("a", '"a": must look like'), ("a-4", '"a-4": must look like'), ("a4@0.3", '"a4@0.3": must look like'),
    ("a8-4", '"a8-4": block 4 comes before block 8'), ("a4@0.5-0.2", '"a4@0.5-0.2": the range of steps must end after'),
    ("a4@0.5-0.5", "must end after 0.5"), ("a4@0-1.01", '"a4@0-1.01": 1.01 is not a number from 0 to 1'),
    ("a4@-1-0.5", "must look like"), ("a4@.-1", r"\. is not a number"), ("a4@0.1.2-1", "0.1.2 is not a number"),
    ("a4@nan-1", "must look like"), ("f4 f4", '"f4": f4 is named twice'), ("a4-8 a8@0-0.3", '"a8@0-0.3": a8 is named'),
    ("a0-999999999999", '"a0-999999999999": must look like'), ("a\u0664", "must look like"),
    ("a4@0-" + "9" * 900, "must look like"),
    ("f4 " * 10**6, "3000000 characters"), (None, "must be a text, got NoneType"), (["f4"], "must be a text"),
])
def test_the_error_names_the_wrong_term(text, what):
    with pytest.raises(DitailError, match=rf"^layers: .*{what}") as caught:
        parse_layers(text)
    assert caught.value.key == "layers"
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(("kind", "text", "what"), [
    ("sd1", "f12", "SD 1.x/2.x has output blocks 0 to 11, and no 12"),
    ("sdxl", "f1 a9", "SDXL has output blocks 0 to 8"),
    ("sd2", "f4 a0", r"SD 1.x/2.x: output_blocks\.0 has no self-attention"),
    ("sdxl", "a5-6", r"output_blocks\.6 has no self-attention"),
])
def test_what_an_architecture_lacks_is_named(unets, kind, text, what):
    for find in (lambda: find_sites(unets[kind], parse_layers(text)),
                 lambda: run(unets[kind], kind=kind, steps=steps_of(text))):
        with pytest.raises(DitailError, match=f"^layers: .*{what}") as caught:
            find()
        assert caught.value.key == "layers"


@pytest.mark.parametrize("text", ["", "f4 a4-8 a9-11@0-0.3", "a5@0.5-1", "f4@0.2-0.4", "a5@0-0.05"])
def test_what_is_left_to_inject(text):
    timesteps = ddim_timesteps(8)
    steps = steps_of(text, timesteps=timesteps, conv_ratio=0.6, attn_ratio=0.3)
    layers = parse_layers(text or "f4 a4")
    for t in timesteps:
        left = any(steps.includes(layer, later) for layer in layers for later in timesteps if later <= t)
        assert steps.has_any_up_to(t) == left


def test_a_block_without_its_resblock_is_named():
    wrong = torch.nn.Module()
    wrong.output_blocks = torch.nn.ModuleList(torch.nn.ModuleList([torch.nn.Identity()]) for _ in range(12))
    with pytest.raises(DitailError, match=r"^layers: .*output_blocks\.7\.0 is not a ResBlock"):
        find_sites(wrong, parse_layers("f7"))


def test_ranges_of_steps_are_cut_as_the_ratios_are():
    timesteps = ddim_timesteps(10)
    steps = steps_of("f4 a4 a5@0-0.3 a6@0.3-0.65 a7@0.65-1 f8@0-1", 0.8, 0.5, timesteps)

    def injected(kind, block):
        # Half precision asks half a timestep beside the grid.
        seen = {"".join("01"[steps.includes(Layer(kind, block), t + off)] for t in reversed(timesteps))
                for off in (-0.5, 0, 0.5)}
        assert len(seen) == 1
        return seen.pop()

    assert injected("f", 4) == "1111111100"
    assert injected("a", 4) == "1111100000"
    assert (injected("a", 5), injected("a", 6), injected("a", 7)) == ("1110000000", "0001110000", "0000001111")
    assert injected("f", 8) == "1" * 10
    assert injected("a", 9) == "0" * 10
    assert [t in Window.of_steps(timesteps, 0, 1) for t in (-1, 0, 999)] == [True] * 3


@pytest.mark.parametrize("kind", DEFAULTS)
def test_explicit_default_layers_equal_the_default(unets, kind):
    explicit, default = (run(unets[kind], Savings(), kind, steps=steps_of(text)) for text in (DEFAULTS[kind], ""))
    assert torch.equal(explicit, default)


@pytest.mark.parametrize("text", [text for kind, text in CHOICES if kind == "sd1"])
def test_what_is_named_is_injected_and_nothing_else(unets, text):
    """Every q, k and feature of the U-Net in the source's run, and in the rows' under injection."""
    unet, seen = unets["sd1"], {}
    everything = find_sites(unet, parse_layers("f0-11 a3-11"))
    modules = {site.layer: [site.module] for site in everything.features}
    modules |= {site.layer: [site.module.to_q, site.module.to_k] for site in everything.attention}

    def watched(forward):
        handles = [m.register_forward_hook(lambda _, __, out, key=(layer, i): seen.update({key: out}))
                   for layer, parts in modules.items() for i, m in enumerate(parts)]
        forward()
        for handle in handles:
            handle.remove()
        return dict(seen)

    expected = watched(lambda: unet(source_latents().at(501), torch.tensor([501]), context=conds()[2]))
    with inject(unet, Injection(source_latents(), {"context": conds()[2]}, steps_of(text), savings=HOOKS)):
        rows = watched(lambda: unet(randn(1, 4, 8, 16, seed=9), torch.tensor([501]), context=conds()[0]))
    differing = {key[0] for key, row in rows.items() if not torch.allclose(row, expected[key], atol=1e-4)}
    assert modules.keys() - differing == {layer for layer in parse_layers(text) if steps_of(text).includes(layer, 501)}


@pytest.mark.parametrize(("kind", "text"), CHOICES)
@pytest.mark.parametrize("t", [901, 501])
def test_savings_change_no_result_for_any_choice(unets, kind, text, t):
    settings = {"kind": kind, "steps": steps_of(text), "t": t}
    expected = run(unets[kind], HOOKS, **settings)
    for savings in (Savings(), *EACH):
        assert_equal(run(unets[kind], savings, **settings), expected)


@pytest.mark.parametrize(("kind", "text"), CHOICES)
def test_hot_equals_warm_for_any_choice(unets, kind, text):
    cache, settings = FeatureCache(2**30), {"kind": kind, "savings": Savings(), "steps": steps_of(text)}
    warm, runs = source_runs(unets[kind], features=cache.under("a"), **settings)
    hot, hot_runs = source_runs(unets[kind], features=cache.under("a"), **settings)
    assert (runs, hot_runs) == (1, 0)
    assert torch.equal(hot, warm)


def test_features_kept_for_another_choice_are_not_taken_for_this_one(unets):
    cache, runs = FeatureCache(2**30), []
    for text in ("f4 a4-11", "a4-8", "f5 a4", "f4"):
        output, count = source_runs(unets["sd1"], savings=Savings(), steps=steps_of(text), features=cache.under("a"))
        assert_equal(output, run(unets["sd1"], HOOKS, steps=steps_of(text)))
        runs.append(count)
    assert runs == [1, 0, 1, 1]


@pytest.mark.parametrize(("text", "last"), [("f4 a4", "4.1"), ("a5 f7", "7.0"), ("f2 a3", "3.1"),
                                            ("a9@0-0.4 f4", "4.0")])
def test_the_source_row_leaves_after_the_last_layer_of_its_step(unets, text, last):
    unet, seen = unets["sd1"], []
    handles = [m.register_forward_pre_hook(lambda _, args, n=n: seen.append(n) if len(args[0]) == 1 else None)
               for n, m in unet.output_blocks.named_modules() if n.count(".") == 1]
    run(unet, Savings(), steps=steps_of(text))
    for handle in handles:
        handle.remove()
    assert seen[-1] == last


def test_a_window_in_the_middle_runs_the_source_there_alone(unets):
    steps = steps_of("a9@0.34-0.67")
    runs = [source_runs(unets["sd1"], savings=Savings(), steps=steps, t=t)[1] for t in (901, 501, 101)]
    assert runs == [0, 1, 0]
