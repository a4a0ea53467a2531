"""What is left out changes no result: every saving against the plain hook path, and when it steps aside."""

import dataclasses

import pytest
import torch

from ditail import DitailError, FeatureCache, Injection, Savings, inject, remove
from ditail.method.schedule import InjectionSteps
from ditail.unet.shortcuts import Shortcut, Trusted, share_probabilities
from tests.injected import (
    ALWAYS,
    EACH,
    HOOKS,
    assert_equal,
    conds,
    hooks_on,
    label,
    randn,
    rows_like,
    rows_run,
    run,
    source_latents,
    source_runs,
)
from tests.unets import SD1, random_unet

T = torch.tensor([501])


@pytest.fixture
def unet(sd1_unets):
    yield sd1_unets[1]
    assert traces(sd1_unets[1]) == []
    assert hooks_on(sd1_unets[1]) == 0


def traces(unet):
    return [n for n, m in unet.named_modules() if "forward" in m.__dict__]


def calls_of(module):
    """How many rows each call of `module` took, and the handle that counts them."""
    rows = []
    return rows, module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("savings", [Savings(), *EACH, Savings(upcast_attention=True)], ids=str)
def test_savings_change_no_result(unets, kind, savings):
    assert_equal(run(unets[kind], savings, kind), run(unets[kind], HOOKS, kind))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("steps", [InjectionSteps(float("inf"), float("-inf")),
                                   InjectionSteps(float("-inf"), float("inf"))], ids=["attention", "feature"])
def test_attention_alone_and_feature_alone(unets, kind, steps):
    assert_equal(run(unets[kind], Savings(), kind, steps=steps), run(unets[kind], HOOKS, kind, steps=steps))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_rows_of_several_images(unets, kind):
    """Rows of three images in an order of the host's own, the one image's twice."""
    settings = {"kind": kind, "images": 3, "source_rows": rows_like(2, 0, 2, 1), "x": randn(4, 4, 8, 16, seed=9),
                "context": randn(4, 7, 32, seed=8)}
    assert_equal(run(unets[kind], Savings(), **settings), run(unets[kind], **settings))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("savings", [Savings(), HOOKS, *EACH], ids=str)
def test_uninjected_rows(unets, kind, savings):
    """One row is what it is without injection, the other what it is when every row is injected."""
    unet, x, context = unets[kind], randn(2, 4, 8, 16, seed=9), torch.cat(conds()[:2])
    plain = unet(x, torch.full((2,), 501), context=context, **label(kind, 2))
    whole = run(unet, HOOKS, kind)
    assert_equal(run(unet, savings, kind, source_rows=rows_like(None, 0)), torch.stack([plain[0], whole[1]]))
    assert_equal(run(unet, savings, kind, source_rows=rows_like(0, None)), torch.stack([whole[0], plain[1]]))


def test_a_call_of_uninjected_rows_alone_needs_no_source_run(unet):
    x = randn(1, 4, 8, 16, seed=9)
    output, runs = rows_run(unet, savings=Savings(), x=x, source_rows=rows_like(None))
    assert runs == [1]
    assert torch.equal(output, unet(x, T, context=conds()[0]))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_with_a_mask_the_hook_path_is_taken_bit_by_bit(unets, kind):
    mask = torch.zeros(1, 1, 8, 16)
    mask[..., :8] = 1
    savings = Savings(early_exit=False)
    assert torch.equal(run(unets[kind], savings, kind, mask=mask), run(unets[kind], HOOKS, kind, mask=mask))


def test_cond_and_uncond_of_unequal_length_in_two_calls(unet):
    contexts = randn(1, 14, 32, seed=1), randn(1, 7, 32, seed=2)
    outputs = []
    for savings in (Savings(), HOOKS):
        with inject(unet, Injection(source_latents(), {"context": conds()[2]}, ALWAYS, savings=savings)):
            outputs.append(torch.cat([unet(randn(1, 4, 8, 16, seed=9), T, context=c) for c in contexts]))
    assert_equal(*outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_float32_than_the_hook_path(unets, dtype):
    errors = {True: [], False: []}
    for seed in range(12):
        x = randn(2, 4, 8, 16, seed=20 + seed)
        exact = run(unets["sd1"], HOOKS, x=x)
        for fast in errors:
            with torch.autocast("cpu", dtype):
                rounded = run(unets["sd1"], Savings() if fast else HOOKS, x=x)
            errors[fast].append((rounded.float() - exact).abs().mean())
    assert sum(errors[True]) <= 1.1 * sum(errors[False])


def test_each_saving_saves_its_own_work(unet):
    """Rows seen by a q projection, a convolution of the feature's block, and the U-Net's last layer."""
    block, attn1 = unet.output_blocks[4][0], unet.output_blocks[7][1].transformer_blocks[0].attn1

    def rows(savings):
        # Counted from within: a hook on them would be somebody else's, and the shortcuts would step aside.
        seen = {}
        for name, module in (("q", attn1.to_q), ("feature", block.in_layers[2]), ("last", unet.out[2])):
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {"forward": lambda self, x, kind=kind, name=name: (
                seen.setdefault(name, []).append(len(x)), kind.forward(self, x))[1]})
        try:
            run(unet, savings)
        finally:
            for module in (attn1.to_q, block.in_layers[2], unet.out[2]):
                module.__class__ = type(module).__bases__[0]
        return seen

    none = {"q": [1, 2], "feature": [1, 2], "last": [1, 2]}
    assert rows(HOOKS) == none
    assert rows(Savings(True, False, False)) == {**none, "last": [2]}
    assert rows(Savings(False, True, False)) == {**none, "q": [1], "feature": [1]}
    assert rows(Savings(False, False, True)) == {**none, "q": [1]}


def test_shared_probabilities_in_slices_equal_one_attention_a_row(monkeypatch):
    q, k, v = randn(2, 24, 32, seed=1), randn(2, 24, 32, seed=2), randn(5, 24, 32, seed=3)
    images = [1, 0, 1, 1, 0]

    def heads(x):
        return x.unflatten(-1, (4, 8)).transpose(1, 2)

    expected = torch.softmax(heads(q[images]) @ heads(k[images]).transpose(-1, -2) * 8**-0.5, -1) @ heads(v)
    expected = expected.transpose(1, 2).flatten(2)
    assert_equal(share_probabilities(q, k, v, 4, images), expected, 1e-5)
    monkeypatch.setattr("ditail.unet.shortcuts.SCORES_AT_ONCE", 4 * 24 * 5)
    assert_equal(share_probabilities(q, k, v, 4, images), expected, 1e-5)


def attention_of(unet):
    return unet.output_blocks[7][1].transformer_blocks[0].attn1


def test_a_replaced_attention_keeps_its_forward_and_the_others_share(unet):
    """Somebody's `forward` on the instance runs for every row, and stays."""
    attn1, seen = attention_of(unet), []

    def theirs(x, **kwargs):
        seen.append(len(x))
        return 2 * type(attn1).forward(attn1, x, **kwargs)

    attn1.forward = theirs
    try:
        ours, seen_by_ours = run(unet, Savings()), list(seen)
        assert attn1.__dict__["forward"] is theirs
        expected = run(unet, HOOKS)
    finally:
        del attn1.forward
    assert_equal(ours, expected)
    assert seen_by_ours == [1, 2]


def test_an_attention_class_that_is_not_known_is_left_alone(unet):
    attn1, seen = attention_of(unet), []
    kind = type(attn1)

    class Theirs(kind):
        def forward(self, x, context=None, mask=None):
            seen.append(len(x))
            return super().forward(x, context, mask) * 2

    attn1.__class__ = Theirs
    try:
        ours, seen_by_ours = run(unet, Savings()), list(seen)
        expected = run(unet, HOOKS)
    finally:
        attn1.__class__ = kind
    assert_equal(ours, expected)
    assert seen_by_ours == [1, 2]


@pytest.mark.parametrize("part", ["to_q", "to_k", "to_v", "to_out"])
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_hooks_of_others_have_the_effect_they_have_on_the_hook_path(unet, part, first):
    module = getattr(attention_of(unet), part)
    outputs = []
    for savings in (Savings(), HOOKS):
        injection = Injection(source_latents(), {"context": conds()[2]}, ALWAYS, savings=savings)
        if first:
            handle = module.register_forward_hook(lambda _, __, output: output * 1.5)
        with inject(unet, injection):
            if not first:
                handle = module.register_forward_hook(lambda _, __, output: output * 1.5)
            outputs.append(unet(randn(2, 4, 8, 16, seed=9), T.expand(2), context=torch.cat(conds()[:2])))
        handle.remove()
    assert_equal(*outputs)


@pytest.mark.parametrize("layer", ["in_layers", "out_layers", "in_layers.2", "emb_layers.1"])
def test_a_hook_in_the_features_block_is_called(unet, layer):
    rows, handle = calls_of(unet.output_blocks[4][0].get_submodule(layer))
    ours = run(unet, Savings())
    handle.remove()
    assert rows == [1, 2]
    assert_equal(ours, run(unet, HOOKS))


def test_keys_from_another_tensor_than_queries(unet, monkeypatch):
    """As a hypernetwork makes them: values are then not `to_v(x)`, and the host's own forward has to make them."""
    kind, theirs = type(attention_of(unet)), type(attention_of(unet)).forward
    attn1s = {block.transformer_blocks[0].attn1 for block in (unet.output_blocks[i][1] for i in range(4, 12))}
    source = "def forward(self, x, context=None, mask=None):\n" \
             "    return theirs(self, x, x * 1.25 if self in attn1s else context, mask)"
    namespace = {"__name__": "trusted", "theirs": theirs, "attn1s": attn1s}
    savings = Savings(trusted=Trusted(attention=("trusted",)))
    exec(compile(source, "hypernetwork", "exec"), namespace)
    monkeypatch.setattr(kind, "forward", namespace["forward"])
    expected = run(unet, HOOKS)
    assert_equal(run(unet, savings), expected)
    cache = FeatureCache(2**30)
    run(unet, savings, features=cache.under("a"))
    assert len(cache) == 0
    monkeypatch.undo()
    assert (run(unet, HOOKS) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("savings", [Savings(), HOOKS])
def test_other_numbers_of_tokens_are_refused_as_on_the_hook_path(unet, savings):
    """A tiling that folds the source otherwise than the rows."""
    attn1, calls = attention_of(unet), []

    def tiled(x, **kwargs):
        calls.append(1)
        tiles = 2 if len(calls) == 1 else 1
        out = type(attn1).forward(attn1, x.unflatten(1, (tiles, -1)).flatten(0, 1), **kwargs)
        return out.unflatten(0, (-1, tiles)).flatten(1, 2)

    attn1.forward = tiled
    try:
        with pytest.raises(DitailError, match=r"output_blocks\.7.*to_q gave"):
            run(unet, savings)
    finally:
        del attn1.forward


def test_installing_and_removing_twice_leaves_no_shortcut(unet):
    injection = Injection(source_latents(), {"context": conds()[2]}, ALWAYS)
    injection.install(unet)
    once = traces(unet)
    injection.install(unet)
    assert traces(unet) == once
    assert len(once) == 1 + 3 * 8
    remove(unet)
    remove(unet)


def test_an_injection_installed_on_another_unet_starts_anew(unet, sd1_unets):
    injection, x = Injection(source_latents(), {"context": conds()[2]}, ALWAYS), randn(1, 4, 8, 16, seed=9)
    with inject(sd1_unets[0], injection):
        sd1_unets[0](x, T, context=conds()[0])
    with inject(unet, injection):
        again = unet(x, T, context=conds()[0])
    assert_equal(again, run(unet, HOOKS, x=x))


def test_an_exception_anywhere_leaves_no_shortcut(unet):
    def fail(*_):
        raise MemoryError("out of memory")

    plain = unet(randn(1, 4, 8, 16), T, context=conds()[0])
    handle = attention_of(unet).to_v.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        run(unet, Savings())
    handle.remove()
    assert traces(unet) == []
    assert torch.equal(unet(randn(1, 4, 8, 16), T, context=conds()[0]), plain)


def test_a_shortcut_that_somebody_wrapped_passes_through_after_its_removal(unet):
    attn1, plain = attention_of(unet), unet(randn(1, 4, 8, 16), T, context=conds()[0])
    with inject(unet, Injection(source_latents(), {"context": conds()[2]}, ALWAYS)):
        ours = attn1.forward
        assert isinstance(ours, Shortcut)
        attn1.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    assert traces(unet) != []
    assert torch.equal(unet(randn(1, 4, 8, 16), T, context=conds()[0]), plain)
    del attn1.forward


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("savings", [Savings(), HOOKS, *EACH], ids=str)
def test_hot_equals_warm(unets, kind, savings):
    cache = FeatureCache(2**30)
    warm, runs = source_runs(unets[kind], kind=kind, savings=savings, features=cache.under("a"))
    hot, hot_runs = source_runs(unets[kind], kind=kind, savings=savings, features=cache.under("a"))
    assert (runs, hot_runs) == (1, 0)
    assert torch.equal(hot, warm)


def test_hot_with_another_prompt_and_under_autocast_equals_warm(unet):
    cache = FeatureCache(2**30)
    other = {"x": randn(3, 4, 8, 16, seed=31), "context": randn(3, 14, 32, seed=32), "savings": Savings()}
    with torch.autocast("cpu", torch.bfloat16):
        run(unet, Savings(), features=cache.under("a"))
        hot, runs = source_runs(unet, **other, features=cache.under("a"))
        warm = run(unet, **other)
    assert runs == 0
    assert torch.equal(hot, warm)


def test_features_are_half_of_q_and_k_in_their_precision(unet):
    """One tensor an attention and one feature: 16-bit where autocast would round them."""
    sizes = []
    for dtype in (None, torch.bfloat16):
        cache = FeatureCache(2**30)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            run(unet, Savings(), features=cache.under("a"))
        sizes.append(cache.nbytes)
    # Grids of 4x2 at 64 channels (blocks 4, 5), 4x8 at 64 (6-8), 8x16 at 32 (9-11), and the 4x2 feature.
    elements = 2 * 8 * 64 + 3 * 32 * 64 + 3 * 128 * 32 + 8 * 64
    assert sizes == [4 * elements, 2 * elements]


def test_features_serve_fewer_layers_but_not_more(unet):
    cache = FeatureCache(2**30)
    feature = InjectionSteps(float("-inf"), float("inf"))
    calls = [feature, ALWAYS, feature, ALWAYS]
    runs = [source_runs(unet, savings=Savings(), steps=steps, features=cache.under("a"))[1] for steps in calls]
    assert runs == [1, 1, 0, 0]


@pytest.mark.parametrize(("key", "size", "change"), [
    ("b", (8, 16), {}), ("a", (8, 16), {"t": 502}), ("a", (8, 8), {"x": randn(2, 4, 8, 8, seed=9)}),
    ("a", (8, 16), {"x": randn(2, 4, 8, 16, seed=9).bfloat16()}),
], ids=["key", "timestep", "size", "dtype"])
def test_what_features_depend_on_is_recomputed(unet, key, size, change):
    cache, source = FeatureCache(2**30), source_latents(size=size)
    with torch.autocast("cpu", torch.bfloat16):
        run(unet, Savings(), features=cache.under("a"))
        again, runs = source_runs(unet, savings=Savings(), features=cache.under(key), source=source, **change)
        expected = run(unet, Savings(), source=source, **change)
    assert runs == 1
    assert torch.equal(again, expected)


def test_modules_are_only_used_while_their_block_is_in_place(unet, monkeypatch):
    """--lowvram moves a block's weights when the block is called, and takes the last one's away."""
    here = []
    owner = {m: block for blocks in (unet.input_blocks, [unet.middle_block], unet.output_blocks) for block in blocks
             for m in block.modules()}
    hook = {"__name__": "movers", "here": here}
    exec("def send_me_to_gpu(module, _): here[:] = [module]", hook)
    handles = [b.register_forward_pre_hook(hook["send_me_to_gpu"]) for b in set(owner.values())]
    for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.GroupNorm):
        def checked(self, x, original=kind.forward):
            assert owner.get(self) in (None, *here)
            return original(self, x)

        monkeypatch.setattr(kind, "forward", checked)
    cache, expected = FeatureCache(2**30), run(unet, HOOKS)
    try:
        for runs in (1, 0):
            savings = Savings(trusted=Trusted(movers=("movers",)))
            output, count = source_runs(unet, savings=savings, features=cache.under("a"))
            assert count == runs
            assert_equal(output, expected)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("where", ["unet", "norm1", "forward"])
def test_nothing_is_kept_while_others_change_the_unet(unet, where):
    """A ControlNet's or an IP-Adapter's image is in no key of ours."""
    block, cache = unet.output_blocks[7][1].transformer_blocks[0], FeatureCache(2**30)
    if where == "forward":
        block.attn2.forward = lambda *args, **kwargs: type(block.attn2).forward(block.attn2, *args, **kwargs)
    else:
        handle = (unet if where == "unet" else block.norm1).register_forward_hook(lambda *_: None)
    run(unet, Savings(), features=cache.under("a"))
    if where == "forward":
        del block.attn2.forward
    else:
        handle.remove()
    assert len(cache) == 0
    run(unet, Savings(), features=cache.under("a"))
    assert len(cache) == 1


def test_an_inpainting_models_own_channels_are_never_kept():
    unet, cache = random_unet({**SD1, "in_channels": 9}, 5), FeatureCache(2**30)
    x = randn(2, 9, 8, 16, seed=9)
    ours = run(unet, Savings(), x=x, features=cache.under("a"))
    assert len(cache) == 0
    assert_equal(ours, run(unet, HOOKS, x=x))


def test_features_that_do_not_fit_are_computed(unet):
    """Room for one of two steps: the first is hot, the second is not, and both are right."""
    probe = FeatureCache(2**30)
    run(unet, Savings(), features=probe.under("a"))
    cache = FeatureCache(int(1.5 * probe.nbytes))
    runs = []
    for t in (901, 501, 901, 501):
        ours, count = source_runs(unet, savings=Savings(), t=t, features=cache.under("a"))
        runs.append(count)
        assert torch.equal(ours, run(unet, Savings(), t=t))
    assert runs == [1, 1, 0, 1]
    assert cache.nbytes <= cache.budget


def test_a_cache_without_budget_keeps_nothing(unet):
    cache = FeatureCache(0)
    assert_equal(run(unet, Savings(), features=cache.under("a")), run(unet, HOOKS))
    assert len(cache) == 0


def test_savings_are_a_frozen_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Savings().early_exit = False
    assert Savings() == Savings(True, True, True, False)


# U-Net FLOPs beside plain generation: the README's table.


@pytest.mark.slow
def test_without_savings_the_cost_is_the_hook_paths():
    from lab import counts

    measured, = counts.flop_ratios(counts.SD15, (16, 16), [1], savings=HOOKS)
    assert measured["warm"] == pytest.approx(1 + 0.8 / 2)
