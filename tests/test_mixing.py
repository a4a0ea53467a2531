"""Several sources at once: shares, masks and windows, savings and kept features, and where sampling starts."""

import base64

import pytest
import torch

from ditail import DitailError, FeatureCache, Injection, Savings, SourceLatents, inject
from ditail.content.further import FurtherSource, parse_sources
from ditail.method.blending import WeightedSource, start_content, start_latent
from ditail.method.schedule import Window
from ditail.unet.sites import find_sites
from ditail.unet.step import resize_mask
from tests.drawings import encoded, halves
from tests.injected import ABAR, ALWAYS, EACH, HOOKS, assert_equal, conds, randn, rows_like, rows_run, run, steps_of
from tests.unets import SD1, random_unet

KINDS = ["sd1", "sd2", "sdxl"]


def latents(seed, rows=1, timesteps=(101, 501, 901), size=(8, 16)):
    return SourceLatents(timesteps, randn(len(timesteps), rows, 4, *size, seed=seed), ABAR)


def half(side, value=1.0, size=(8, 16)):
    mask = torch.zeros(1, 1, *size)
    middle = size[1] // 2
    mask[..., slice(0, middle) if side == "left" else slice(middle, None)] = value
    return mask


A, B = latents(1), latents(2, timesteps=(1, 401, 601, 999))
EARLY, LATE = Window(above=600), Window(up_to=600)
MIXES = {
    "weights": [WeightedSource(A, 2.0), WeightedSource(B, 0.5), WeightedSource(latents(3))],
    "one on top": [WeightedSource(A), WeightedSource(B, 3.0, half("left", 0.7))],
    "sides": [WeightedSource(A, 2.0, half("left")), WeightedSource(B, 1.0, half("right", 0.3))],
    "with a gap": [WeightedSource(A, 1.0, half("left")), WeightedSource(B, 0.5, half("left", 0.5))],
    "window": [WeightedSource(A, 1.0, None, LATE), WeightedSource(B), WeightedSource(latents(3), 1.0, None, EARLY)],
}
BATCH = [WeightedSource(latents(1, rows=3)), WeightedSource(B, 2.0, half("left")),
         WeightedSource(latents(3, rows=3), 0.5)]
ROWS = {"source_rows": rows_like(2, 0, 2, 1), "x": randn(4, 4, 8, 16, seed=9), "context": randn(4, 7, 32, seed=8)}


@pytest.mark.parametrize("savings", [Savings(), HOOKS, *EACH], ids=str)
def test_a_mix_of_one_source_equals_that_source(unets, savings):
    alone = run(unets["sd1"], savings, source=A)
    assert torch.equal(run(unets["sd1"], savings, source=[WeightedSource(A)]), alone)
    others = [WeightedSource(B, 0.0), WeightedSource(B, 1.0, None, EARLY)]
    assert torch.equal(run(unets["sd1"], savings, source=[WeightedSource(A, 2.5), *others]), alone)


@pytest.mark.parametrize("mixed", [
    [WeightedSource(A), WeightedSource(A, 3.0)],
    [WeightedSource(A, 1.0, half("left")), WeightedSource(A, 0.1, half("right"))],
    [WeightedSource(A, 1.0, half("left", 0.4)), WeightedSource(A)]], ids=["weights", "sides", "soft"])
def test_equal_sources_share_one_object(unets, mixed):
    assert_equal(run(unets["sd1"], Savings(), source=mixed), run(unets["sd1"], HOOKS, source=A))


def test_the_injections_mask_and_a_sources_are_the_same_to_one_source(unets):
    by_mask, by_sources = ({"mask": half("left")}, {"source": [WeightedSource(A, 1.0, half("left"))]})
    assert_equal(run(unets["sd1"], Savings(), source=A, **by_mask), run(unets["sd1"], Savings(), **by_sources))
    both = run(unets["sd1"], Savings(), source=[WeightedSource(A, 1.0, half("left"))], mask=half("right"))
    plain = unets["sd1"](randn(2, 4, 8, 16, seed=9), torch.tensor([501] * 2), context=torch.cat(conds()[:2]))
    assert_equal(both, plain)


def watched(unet, sites, forward):
    """Every layer's output in one forward, by (name, part)."""
    seen, handles = {}, []
    for site in (*sites.features, *sites.attention):
        parts = {"": site.module} if site in sites.features else {"q": site.module.to_q, "k": site.module.to_k}
        for part, module in parts.items():
            handles.append(module.register_forward_hook(
                lambda _, __, out, key=(site.name, part): seen.update({key: out})))
    forward()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", MIXES)
def test_rows_take_the_weighted_mean_at_each_place(unets, name):
    """`sum(w m x) / sum(w m)` of what each source computes alone; the row's own where that sum is 0."""
    unet, null, t = unets["sd1"], conds()[2], 501
    sites, x = find_sites(unet), randn(1, 4, 8, 16, seed=9)
    active = [m for m in MIXES[name] if t in m.window]
    alone = [watched(unet, sites, lambda m=m: unet(m.latents.at(t), torch.tensor([t]), context=null)) for m in active]
    outputs = {}
    # Registered before Ditail's hooks, these see what the row itself computes (in the last run, which is the row's).
    modules = {(site.name, ""): site.module for site in sites.features}
    modules |= {(s.name, part): getattr(s.module, f"to_{part}") for s in sites.attention for part in "qk"}
    handles = [m.register_forward_hook(lambda _, __, out, key=key: outputs.update({key: out}) and None)
               for key, m in modules.items()]
    with inject(unet, Injection(MIXES[name], {"context": null}, ALWAYS, savings=HOOKS)):
        seen = watched(unet, sites, lambda: unet(x, torch.tensor([t]), context=conds()[0]))
    for handle in handles:
        handle.remove()
    grids = {8: (2, 4), 32: (4, 8), 128: (8, 16)}
    for key, value in seen.items():
        hw = value.shape[-2:] if value.ndim == 4 else grids[value.shape[1]]

        def on_grid(mask, hw=hw, value=value):
            mask = torch.ones(1, 1, *hw) if mask is None else resize_mask(mask, hw)
            return mask if value.ndim == 4 else mask.flatten(2).transpose(1, 2)

        weights = [m.weight * on_grid(m.mask) for m in active]
        expected = sum(w * one[key] for w, one in zip(weights, alone, strict=True)) / sum(weights)
        expected = torch.where(sum(weights) > 0, expected, outputs[key])
        assert torch.allclose(value, expected, atol=1e-4), key
    assert len(seen) == 1 + 2 * 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MIXES)
def test_savings_change_no_result(unets, kind, name):
    expected = run(unets[kind], HOOKS, kind, source=MIXES[name])
    for savings in (Savings(), *EACH):
        assert_equal(run(unets[kind], savings, kind, source=MIXES[name]), expected)


@pytest.mark.parametrize("text", ["a5 f7 f2", "f4@0-0.5 a9-11"])
def test_custom_layers_from_several_sources(unets, text):
    settings = {"source": MIXES["one on top"], "steps": steps_of(text)}
    assert_equal(run(unets["sd1"], Savings(), **settings), run(unets["sd1"], HOOKS, **settings))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_several_images(unets, kind):
    """A source of one row serves every image; each row equals the run of its image alone."""
    settings = {"kind": kind, "source": BATCH, **ROWS}
    together = run(unets[kind], HOOKS, **settings)
    for savings in (Savings(), *EACH):
        assert_equal(run(unets[kind], savings, **settings), together)
    for row, (image, _) in enumerate(ROWS["source_rows"](4, {})):
        part = slice(image, image + 1)
        mixed = [WeightedSource(SourceLatents(m.latents.timesteps.tolist(), m.latents.latents[:, part], ABAR)
                       if m.rows == 3 else m.latents, m.weight, m.mask) for m in BATCH]
        alone = {"x": ROWS["x"][row : row + 1], "context": ROWS["context"][row : row + 1]}
        assert_equal(together[row], run(unets[kind], HOOKS, kind, source=mixed, **alone)[0])


@pytest.mark.parametrize(("t", "expected"), [(901, [3, 5]), (501, [2, 5]), (101, [2, 5])])
def test_a_source_out_of_its_window_is_not_run(unets, t, expected):
    early = [WeightedSource(B, 0.5, None, EARLY), WeightedSource(A, 2.0, None, EARLY)]
    mixed = [WeightedSource(A), WeightedSource(B, 1.0, None, LATE), WeightedSource(latents(3), 0.0), *early]
    five = {"x": randn(5, 4, 8, 16, seed=9), "context": randn(5, 7, 32, seed=8)}
    assert rows_run(unets["sd1"], savings=Savings(), source=mixed, t=t, **five)[1] == expected


def test_nothing_is_injected_while_no_source_takes_part(unets):
    x, context = randn(2, 4, 8, 16, seed=9), torch.cat(conds()[:2])
    output, rows = rows_run(unets["sd1"], savings=Savings(), source=[WeightedSource(A, 1.0, None, EARLY)])
    assert rows == [2]
    assert torch.equal(output, unets["sd1"](x, torch.tensor([501] * 2), context=context))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MIXES)
def test_hot_equals_warm(unets, kind, name):
    cache, settings = FeatureCache(2**30), {"kind": kind, "savings": Savings(), "source": MIXES[name]}
    warm, rows = rows_run(unets[kind], features=cache.under("a"), **settings)
    hot, hot_rows = rows_run(unets[kind], features=cache.under("a"), **settings)
    assert (len(rows), len(hot_rows)) == (2, 1)
    assert torch.equal(hot, warm)


def test_features_are_kept_before_they_are_mixed(unets):
    """Other weights and masks are hot, other sources in the step are not, and all are right."""
    cache, early = FeatureCache(2**30), WeightedSource(latents(3), 1.0, None, EARLY)
    mixed = [WeightedSource(A), WeightedSource(B), early]
    changed = [WeightedSource(A, 3.0), WeightedSource(B, 0.2, half("left")), early]
    others = [WeightedSource(A), WeightedSource(B, 0.0), early]
    counts = []
    for source in (mixed, changed, others):
        output, rows = rows_run(unets["sd1"], savings=Savings(), source=source, features=cache.under("a"))
        assert_equal(output, run(unets["sd1"], HOOKS, source=source))
        counts.append(len(rows))
    assert counts == [2, 1, 2]


def test_half_precision_mixes_too(unets):
    exact = run(unets["sd1"], HOOKS, source=MIXES["sides"])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(unets["sd1"], Savings(), source=MIXES["sides"])
        alone = run(unets["sd1"], Savings(), source=A)
    error, usual = rounded.float() - exact, alone.float() - run(unets["sd1"], HOOKS, source=A)
    assert error.abs().mean() < 1.5 * usual.abs().mean()


def test_an_inpainting_models_own_channels_go_to_every_source():
    unet, x = random_unet({**SD1, "in_channels": 9}, 5), randn(2, 9, 8, 16, seed=9)
    twice = run(unet, Savings(), x=x, source=[WeightedSource(A), WeightedSource(A)])
    assert_equal(twice, run(unet, HOOKS, x=x, source=A))


@pytest.mark.parametrize(("mixed", "what"), [
    ([], "at least one needs a weight"), ([WeightedSource(A, 0.0)], "at least one needs a weight"),
    ([WeightedSource(A), WeightedSource(B, -1.0)], "weight of source 1 is -1"),
    ([WeightedSource(A), WeightedSource(B, float("nan"))], "weight of source 1"),
    ([WeightedSource(A), WeightedSource(latents(2, size=(8, 8)))], r"source 1 has 1 latents of \(8, 8\)"),
    ([WeightedSource(latents(1, rows=2)), WeightedSource(latents(2, rows=3))], "source 0 has 2 latents"),
    ([WeightedSource(A, 1.0, torch.ones(8, 16))], r"mask of source 0 is \(8, 16\)"),
])
def test_the_error_names_sources_that_can_not_be_mixed(unets, mixed, what):
    for use in (lambda: run(unets["sd1"], source=mixed), lambda: start_latent(mixed, 901)):
        with pytest.raises(DitailError, match=f"^sources: .*{what}") as caught:
            use()
        assert caught.value.key.startswith("sources")


def spread_of(z):
    return z.std((-2, -1), correction=0)


def noise(seed, rows=1, scale=1.0, size=(32, 32)):
    return SourceLatents([901], scale * randn(1, rows, 4, *size, seed=seed), ABAR)


def test_the_start_of_one_source_is_its_latent():
    assert torch.equal(start_latent(A, 901), A.at(901))
    assert torch.equal(start_latent([WeightedSource(A, 0.3), WeightedSource(B, 0.0)], 901), A.at(901))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (10.0, 0.1)])
def test_the_start_keeps_the_mean_deviation_of_independent_sources(weights):
    x, y = noise(1), noise(2, scale=2.0)
    p, q = (w / sum(weights) for w in weights)
    z = start_latent([WeightedSource(x, weights[0]), WeightedSource(y, weights[1])], 901)
    assert torch.allclose(spread_of(z), p * spread_of(x.at(901)) + q * spread_of(y.at(901)), rtol=1e-4)
    assert torch.allclose(z.mean((-2, -1)), (p * x.at(901) + q * y.at(901)).mean((-2, -1)), atol=1e-5)


def test_identical_sources_are_not_scaled():
    x = noise(1)
    equal = SourceLatents([901], x.latents * 1.0, ABAR)
    assert torch.allclose(start_latent([WeightedSource(x), WeightedSource(equal, 2.0)], 901), x.at(901), atol=1e-5)


def test_a_place_of_a_single_source_is_not_changed():
    x, y, left = noise(1), noise(2), half("left", size=(32, 32))
    z = start_latent([WeightedSource(x, 1.0, left), WeightedSource(y, 1.0, 1 - left)], 901)
    assert torch.allclose(z, torch.where(left > 0, x.at(901), y.at(901)), atol=1e-5)
    # Half of both on the right: independent noises of one deviation keep it.
    z = start_latent([WeightedSource(x), WeightedSource(y, 1.0, half("right", size=(32, 32)))], 901)
    assert torch.allclose(z[..., :16], x.at(901)[..., :16], atol=1e-5)
    assert spread_of(z[..., 16:]).mean() == pytest.approx(1, abs=0.05)


def test_where_no_mask_reaches_the_start_is_blended_by_weights():
    x, y, left = noise(1), noise(2), half("left", size=(32, 32))
    z = start_latent([WeightedSource(x, 3.0, left), WeightedSource(y, 1.0, left)], 901)
    assert torch.allclose(z, start_latent([WeightedSource(x, 3.0), WeightedSource(y)], 901), atol=1e-5)


def test_the_start_is_made_of_the_sources_of_the_first_step():
    x, y, later = noise(1), noise(2), Window(up_to=500)
    assert torch.equal(start_latent([WeightedSource(x), WeightedSource(y, 9.0, None, later)], 901), x.at(901))
    both = start_latent([WeightedSource(x, 1.0, None, later), WeightedSource(y, 1.0, None, later)], 901)
    assert torch.equal(both, start_latent([WeightedSource(x), WeightedSource(y)], 901))


def test_the_start_of_a_batch_and_of_flat_or_opposed_latents():
    x, y = noise(1, rows=3), noise(2)
    z = start_latent([WeightedSource(x), WeightedSource(y)], 901)
    third = SourceLatents([901], x.latents[:, 2:], ABAR)
    assert torch.allclose(z[2:], start_latent([WeightedSource(third), WeightedSource(y)], 901), atol=1e-5)
    flat = SourceLatents([901], torch.ones(1, 1, 4, 8, 8), ABAR)
    assert torch.equal(start_latent([WeightedSource(flat), WeightedSource(flat)], 901), torch.ones(1, 4, 8, 8))
    opposed = SourceLatents([901], -y.latents, ABAR)
    assert torch.isfinite(start_latent([WeightedSource(y), WeightedSource(opposed)], 901)).all()


def test_the_apis_objects_become_further_sources():
    image, mask = (base64.b64encode(encoded(image)).decode() for image in (halves(), halves().convert("L")))
    plain, full = parse_sources([{}, {
        "source": "generate", "image": image, "source_checkpoint": "noto", "source_vae": "v", "source_prompt": "p",
        "source_negative_prompt": "n", "weight": 3, "mask": mask, "steps": [0.25, 1]}])
    assert plain == FurtherSource("image", None, "", "", "", "", 1.0, None, (0.0, 1.0))
    assert (full.source, full.source_checkpoint, full.source_vae) == ("generate", "noto", "v")
    assert (full.source_prompt, full.source_negative_prompt, full.weight, full.steps) == ("p", "n", 3.0, (0.25, 1.0))
    assert full.image.tobytes() == halves().tobytes()
    assert (full.mask.mode, full.mask.size) == ("L", (40, 20))
    assert parse_sources(None) == parse_sources([]) == ()
    assert parse_sources([{"image": None, "mask": None}]) == (plain,)


@pytest.mark.parametrize(("values", "sentence"), [
    ({}, "sources: must be a list of objects, got dict"), ([{}] * 9, "sources: has 9 entries, at most 8"),
    ([{}, 3], r"sources\[1\]: must be an object, got int"),
    ([{"wait": 1}], r"sources\[0\]: 'wait' is not one of its keys"),
    ([{"alpha": 1}], "'alpha' is not one of its keys"),
    ([{}, {"weight": 10.5}], r"sources\[1\]\.weight: must be a number from 0 to 10, got 10.5"),
    ([{"weight": "1"}], r"sources\[0\]\.weight: must be a number"), ([{"weight": None}], "must be a number"),
    ([{"source": "photo"}], r'sources\[0\]\.source: must be one of "image", "generate"'),
    ([{"source_prompt": 1}], r"sources\[0\]\.source_prompt: must be a text"),
    ([{"image": "aGVsbG8="}], r"sources\[0\]\.image: it is not an image"),
    ([{"mask": 5}], r"sources\[0\]\.mask: must be a base64 image or null, got int"),
    ([{"steps": [0, 1.5]}], r"sources\[0\]\.steps: must be a list of 2 numbers from 0 to 1"),
    ([{"steps": "0-1"}], "must be a list of 2 numbers"), ([{"steps": [0.5]}], "must be a list of 2 numbers"),
    ([{"steps": [0.5, 0.5]}], r"sources\[0\]\.steps: must end after its beginning, got \[0.5, 0.5\]"),
])
def test_what_is_wrong_with_a_further_source_is_named(values, sentence):
    with pytest.raises(DitailError, match=sentence) as caught:
        parse_sources(values)
    assert caught.value.key.startswith("sources")
    assert str(caught.value).startswith("sources")


def test_the_content_of_the_start_is_blended_by_the_shares_of_its_latent():
    x, y = (SourceLatents([901], randn(1, 1, 4, 8, 16), ABAR, z0=torch.full((1, 4, 8, 16), value))
            for value in (1.0, 5.0))
    left, later = half("left"), Window(up_to=500)
    assert torch.equal(start_content(x, 901), x.z0)
    assert torch.equal(start_content([WeightedSource(x, 1.0, None, later), WeightedSource(y, 3.0)], 901), y.z0)
    assert torch.allclose(start_content([WeightedSource(x), WeightedSource(y, 3.0)], 901), torch.tensor(4.0))
    z0 = start_content([WeightedSource(x, 1.0, left), WeightedSource(y, 1.0, left)], 901)
    assert torch.allclose(z0, torch.tensor(3.0)) and z0.shape == (1, 4, 8, 16)
    z0 = start_content([WeightedSource(x, 1.0, left), WeightedSource(y, 1.0, 1 - left)], 901)
    assert torch.allclose(z0[..., :8], torch.tensor(1.0)) and torch.allclose(z0[..., 8:], torch.tensor(5.0))
