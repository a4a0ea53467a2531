"""The core on small real U-Nets: inversion, look-up, injection, removal, masks, rows."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ditail
from ditail import DitailError, Injection, Savings, SourceLatents, inject, invert, remove
from ditail.method.inversion import combine_conds, ddim_step
from ditail.method.layers import Layer
from ditail.method.schedule import InjectionSteps, alphas_cumprod_at, ddim_timesteps
from ditail.unet import injection, step
from ditail.unet.sites import architecture_of, find_sites
from tests.injected import ABAR, ALWAYS, conds, hooks_on, randn, rows_like, source_latents
from tests.unets import SD1, random_unet

SETTINGS = {"alphas_cumprod": ABAR, "steps": 4, "alpha": 2.0, "beta": 0.5, "omega": 3.0, "conv_ratio": 0.8,
            "attn_ratio": 0.5}


def test_core_imports_neither_the_webui_nor_gradio():
    """Every module of the core, in an interpreter in which `modules` and `gradio` can't be imported."""
    package = Path(ditail.__file__).parent
    paths = [p.relative_to(package.parent).with_suffix("") for p in package.rglob("*.py")]
    names = [".".join(p.parts) for p in paths if p.parts[1] not in ("webui", "standalone", "__main__")]
    code = (f"import sys, importlib; sys.modules.update(modules=None, gradio=None)\n"
            f"for n in {names!r}: importlib.import_module(n)\n"
            "print(sorted(m.split('.')[0] for m in sys.modules if m.split('.')[0] in "
            "('ldm', 'transformers', 'diffusers', 'yaml')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(names) > 20
    assert done.stdout.strip() == "[]"


def test_ddim_timesteps_are_the_authors_grid():
    assert ddim_timesteps(7) == [1, 143, 285, 427, 569, 711, 853]
    assert ddim_timesteps(1) == [1]
    assert ddim_timesteps(999) == list(range(1, 1000))
    for bad in (0, 1000, -1, 2.0, True, "5"):
        with pytest.raises(DitailError, match="steps"):
            ddim_timesteps(bad)


class OnMps(torch.Tensor):
    """A tensor on a device without float64, as MPS is."""

    def double(self):
        raise TypeError("the MPS framework doesn't support float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_alphas_cumprod_between_timesteps_follows_log_sigma():
    at = alphas_cumprod_at(ABAR, torch.tensor([0.0, 500.0, 500.5, 999.0, 2000.0]))
    sigma = torch.sqrt((1 - ABAR.double()) / ABAR.double())
    assert torch.equal(at[[0, 1, 3, 4]], ABAR.double()[[0, 500, 999, 999]])
    assert torch.isclose(1 / at[2] - 1, sigma[500] * sigma[501], rtol=1e-9)
    timesteps = torch.tensor([500.0])
    assert alphas_cumprod_at(ABAR.as_subclass(OnMps), timesteps.as_subclass(OnMps)) == at[1]


@pytest.mark.parametrize(("ratio", "injected"), [(0.0, 0), (0.3, 2), (0.5, 3), (0.99, 6), (1.0, 7)])
def test_the_first_steps_are_injected(ratio, injected):
    timesteps = ddim_timesteps(7)
    steps = InjectionSteps.from_ratios(timesteps, ratio, 0.0)
    feature, attention = Layer("f", 4), Layer("a", 4)
    assert [steps.includes(feature, t) for t in reversed(timesteps)] == [True] * injected + [False] * (7 - injected)
    assert not any(steps.includes(attention, t) for t in timesteps)


def test_inversion_is_undone_by_sampling_with_the_same_eps():
    """An eps that depends on t alone makes DDIM exactly invertible."""
    z0, timesteps = randn(1, 4, 8, 8), ddim_timesteps(10)
    source = invert(lambda z, t: torch.full_like(z, t / 1000), z0, timesteps, ABAR)
    z = source.at(timesteps[-1])
    for t, lower in zip(reversed(timesteps), [*reversed(timesteps[:-1]), 0], strict=True):
        z = ddim_step(z, torch.full_like(z, t / 1000), ABAR[t], ABAR[lower])
    assert torch.allclose(z, z0, atol=1e-4)
    assert (source.at(timesteps[-1]) - z0).abs().max() > 0.1


def test_inversion_names_the_step_that_diverges():
    def eps(z, t):
        return z * (float("nan") if t > 400 else 1.0)

    with pytest.raises(DitailError, match=r"step 5 of 10 \(t = 401\); lower alpha"):
        invert(eps, randn(1, 4, 8, 8), ddim_timesteps(10), ABAR)


def test_combined_conds_of_unequal_length_repeat_the_last_chunk():
    cond, uncond = randn(1, 231, 8, seed=1), randn(1, 77, 8, seed=2)
    both = combine_conds(2.0, cond, 0.5, uncond)
    assert torch.allclose(both, 2 * cond - 0.5 * uncond.repeat(1, 3, 1))
    assert combine_conds(1.0, uncond, 1.0, cond).shape == (1, 231, 8)


def test_look_up_between_timesteps_is_a_ddim_step():
    timesteps, eps = [201, 401], randn(1, 4, 8, 8, seed=3)
    x0 = randn(1, 4, 8, 8, seed=4)
    ladder = {t: ABAR[t].sqrt() * x0 + (1 - ABAR[t]).sqrt() * eps for t in (201, 301, 401)}
    source = SourceLatents(timesteps, torch.stack([ladder[t] for t in timesteps]), ABAR)
    assert torch.allclose(source.at(301), ladder[301], atol=1e-4)
    assert torch.equal(source.at(401), ladder[401])
    assert torch.equal(source.at(999), ladder[401])
    assert torch.equal(source.at(1), ladder[201])


def test_source_latents_keep_through_a_file(tmp_path):
    source, path = source_latents(), tmp_path / "z.safetensors"
    source.save(path, {"model": "noto"})
    loaded, metadata = SourceLatents.load(path)
    assert metadata == {"model": "noto"}
    assert torch.equal(loaded.latents, source.latents)
    assert torch.equal(loaded.at(300), source.at(300))
    assert [p.name for p in tmp_path.iterdir()] == ["z.safetensors"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DitailError, match="z.safetensors"):
        SourceLatents.load(path)


def test_sites_of_both_architectures(sd1_unets, sdxl_unet):
    sites = find_sites(sd1_unets[0])
    assert [site.name for site in sites.features] == ["output_blocks.4.0.out_layers"]
    assert [site.name.split(".")[1] for site in sites.attention] == [str(i) for i in range(4, 12)]
    sites = find_sites(sdxl_unet)
    assert sites.architecture.name == "SDXL"
    assert [site.name for site in sites.features] == ["output_blocks.1.0.out_layers"]
    assert [site.name.split(".")[1] for site in sites.attention] == [str(i) for i in range(1, 6) for _ in range(2)]


def test_models_without_such_blocks_are_refused(sd1_unets):
    with pytest.raises(DitailError, match="Linear has no output blocks"):
        architecture_of(torch.nn.Linear(2, 2))
    wrong = torch.nn.Module()
    wrong.output_blocks = torch.nn.ModuleList(torch.nn.ModuleList([torch.nn.Identity()]) for _ in range(12))
    with pytest.raises(DitailError, match=r"output_blocks\.4\.0 is not a ResBlock"):
        find_sites(wrong)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("early_exit", [True, False])
def test_injected_rows_compute_what_the_source_computes(sd1_unets, sdxl_unet, kind, early_exit):
    """q, k and the feature of every row equal those of the source latent with the null prompt."""
    savings = Savings(early_exit, skip_dead=False, share_attention=False)
    unet = sd1_unets[1] if kind == "sd1" else sdxl_unet
    label = {} if kind == "sd1" else {"y": torch.tensor([3])}
    source, (cond, _, null) = source_latents(), conds()
    sites = find_sites(unet)
    watched = [(s.name, s.module) for s in sites.features] + [(s.name, s.module.to_q) for s in sites.attention]
    seen = {}

    def watch():
        return [m.register_forward_hook(lambda _, __, out, n=n: seen.update({n: out})) for n, m in watched]

    handles = watch()
    unet(source.at(501), torch.tensor([501]), context=null, **label)
    expected = dict(seen)
    for handle in handles:
        handle.remove()
    with inject(unet, Injection(source, {"context": null, **label}, ALWAYS, savings=savings)):
        handles = watch()
        labels = {k: v.expand(3) for k, v in label.items()}
        unet(randn(3, 4, 8, 16, seed=9), torch.tensor([501] * 3), context=cond.expand(3, -1, -1), **labels)
    for handle in handles:
        handle.remove()
    assert len(expected) == len(watched)
    for name, value in expected.items():
        for row in seen[name]:
            assert torch.allclose(row, value[0], atol=1e-4)


def test_early_exit_changes_nothing_and_saves_layers(sd1_unets):
    source, (cond, _, null) = source_latents(), conds()
    calls, outputs = [], []
    last = sd1_unets[1].out
    for early_exit in (True, False):
        savings = Savings(early_exit)
        handle = last.register_forward_hook(lambda *_: calls.append(1))
        with inject(sd1_unets[1], Injection(source, {"context": null}, ALWAYS, savings=savings)):
            outputs.append(sd1_unets[1](randn(1, 4, 8, 16), torch.tensor([501]), context=cond))
        handle.remove()
    assert torch.equal(*outputs)
    assert len(calls) == 1 + 2


def test_no_source_run_if_nothing_is_injected(sd1_unets):
    runs = []
    handle = sd1_unets[1].input_blocks[0].register_forward_hook(lambda *_: runs.append(1))
    never = InjectionSteps(float("inf"), float("inf"))
    with inject(sd1_unets[1], Injection(source_latents(), {"context": conds()[2]}, never)):
        sd1_unets[1](randn(1, 4, 8, 16), torch.tensor([501]), context=conds()[0])
    handle.remove()
    assert len(runs) == 1


def test_one_source_run_serves_cond_and_uncond_in_two_calls(sd1_unets):
    cond, uncond, null = conds()
    x, t = randn(1, 4, 8, 16, seed=9), torch.tensor([501])
    runs = []
    handle = sd1_unets[1].input_blocks[0].register_forward_hook(lambda *_: runs.append(1))
    with inject(sd1_unets[1], Injection(source_latents(), {"context": null}, ALWAYS)):
        apart = torch.cat([sd1_unets[1](x, t, context=c) for c in (uncond, cond)])
        together = sd1_unets[1](torch.cat([x, x]), t.expand(2), context=torch.cat([uncond, cond]))
    handle.remove()
    assert len(runs) == 1 + 2 + 1
    assert torch.allclose(apart, together, atol=1e-4)


def test_rows_are_injected_from_their_images_source(sd1_unets):
    """Two images, rows in an order of the host's own: each equals the run of that image alone."""
    cond, _, null = conds()
    unet, x, t = sd1_unets[1], randn(3, 4, 8, 16, seed=9), torch.tensor([501])
    source = source_latents(rows=2)
    images = [1, 0, 1]
    with inject(unet, Injection(source, {"context": null}, ALWAYS, source_rows=rows_like(*images))):
        together = unet(x, t.expand(3), context=cond.expand(3, -1, -1))
    for row, image in enumerate(images):
        alone = SourceLatents(source.timesteps.tolist(), source.latents[:, image : image + 1], ABAR)
        with inject(unet, Injection(alone, {"context": null}, ALWAYS)):
            expected = unet(x[row : row + 1], t, context=cond)
        assert torch.allclose(together[row], expected[0], atol=1e-4)


def test_mask_of_zeros_is_no_injection_and_of_ones_is_all(sd1_unets):
    cond, _, null = conds()
    unet, x, t = sd1_unets[1], randn(1, 4, 8, 16, seed=9), torch.tensor([501])

    def run(mask):
        with inject(unet, Injection(source_latents(), {"context": null}, ALWAYS, mask=mask)):
            return unet(x, t, context=cond)

    zeros, ones = torch.zeros(1, 1, 8, 16), torch.ones(1, 1, 8, 16)
    assert torch.allclose(run(zeros), unet(x, t, context=cond), atol=1e-5)
    assert torch.allclose(run(ones), run(None), atol=1e-5)
    assert not torch.allclose(run(ones), run(zeros), atol=1e-2)


@pytest.mark.parametrize("side", [8, 12, 20, 28])
def test_halves_on_every_grid_are_the_authors(side):
    """The authors draw `[: w // 2]` anew on each layer's grid."""
    mask = torch.zeros(1, 1, 8, side)
    mask[..., : side // 2] = 1
    for divisor in (1, 2, 4):
        width = side // divisor
        columns = step.resize_mask(mask, (8 // divisor, width))[0, 0, 0]
        assert columns.tolist() == [1.0] * (width // 2) + [0.0] * (width - width // 2)


def test_install_twice_remove_twice_leaves_nothing(sd1_unets):
    unet, configuration = sd1_unets[1], Injection(source_latents(), {"context": conds()[2]}, ALWAYS)
    configuration.install(unet)
    once = hooks_on(unet)
    configuration.install(unet)
    assert hooks_on(unet) == once == 1 + 1 + 2 * 8
    remove(unet)
    remove(unet)
    assert hooks_on(unet) == 0
    assert injection.INSTALLED not in unet.__dict__


@pytest.mark.parametrize("where", ["source", "target"])
def test_an_exception_in_any_run_leaves_the_unet_as_it_was(sd1_unets, where):
    unet, x, t = sd1_unets[1], randn(1, 4, 8, 16), torch.tensor([501])
    plain = unet(x, t, context=conds()[0])
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == (1 if where == "source" else 2):
            raise MemoryError("out of memory")

    handle = unet.middle_block.register_forward_hook(fail)
    with pytest.raises(MemoryError), inject(unet, Injection(source_latents(), {"context": conds()[2]}, ALWAYS)):
        unet(x, t, context=conds()[0])
    handle.remove()
    assert hooks_on(unet) == 0
    assert torch.equal(unet(x, t, context=conds()[0]), plain)


@pytest.mark.parametrize("where", ["inside", "before"])
def test_after_a_source_run_that_raised_the_same_timestep_starts_another(sd1_unets, where):
    unet, x, t = sd1_unets[1], randn(1, 4, 8, 16), torch.tensor([501])
    with inject(unet, Injection(source_latents(), {"context": conds()[2]}, ALWAYS)) as configuration:
        expected = unet(x, t, context=conds()[0])
        remove(unet)
        configuration.install(unet)
        if where == "inside":
            def interrupt(*_):
                handle.remove()
                raise KeyboardInterrupt

            handle = unet.output_blocks[6].register_forward_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                unet(x, t, context=conds()[0])
        else:
            with pytest.raises(DitailError, match="height, width"):
                unet(x[..., :8], t, context=conds()[0])
        assert torch.equal(unet(x, t, context=conds()[0]), expected)


def test_latents_of_another_size_are_refused(sd1_unets):
    with (pytest.raises(DitailError, match=r"the source latents are \(8, 16\), the sampler's \(8, 8\)"),
          inject(sd1_unets[1], Injection(source_latents(), {"context": conds()[2]}, ALWAYS))):
        sd1_unets[1](randn(1, 4, 8, 8), torch.tensor([501]), context=conds()[0])


def test_mix_of_several_rows_equals_each_row_alone(sd1_unets):
    z0, (cond, uncond, null) = randn(2, 4, 8, 16), conds(2)
    together = ditail.mix(*sd1_unets, z0, cond, uncond, null, **SETTINGS)
    assert together[0].shape == together[1].shape == (4, 2, 4, 8, 16)
    for row in range(2):
        part = slice(row, row + 1)
        alone = ditail.mix(*sd1_unets, z0[part], cond[part], uncond[part], null, **SETTINGS)
        for ours, expected in zip(together, alone, strict=True):
            assert (ours[:, row] - expected).abs().max() < 1e-3 * expected.abs().max()


def test_mix_with_prompts_of_unequal_length(sd1_unets):
    cond, uncond, null = randn(1, 154, 32, seed=1), randn(1, 77, 32, seed=2), randn(1, 77, 32, seed=3)
    _, samples = ditail.mix(*sd1_unets, randn(1, 4, 8, 8), cond, uncond, null, **SETTINGS)
    assert torch.isfinite(samples).all()


def test_bf16_loses_no_more_with_injection_than_without(sd1_unets):
    def error(**changes):
        arguments, settings = (*sd1_unets, randn(1, 4, 8, 16), *conds()), {**SETTINGS, **changes}
        _, exact = ditail.mix(*arguments, **settings)
        with torch.autocast("cpu", torch.bfloat16):
            _, rounded = ditail.mix(*arguments, **settings)
        assert rounded.dtype == torch.float32
        return (rounded - exact).abs().mean()

    assert error() < 1.5 * error(conv_ratio=0.0, attn_ratio=0.0)


def test_unets_in_half_precision_are_handed_their_own_dtype(sd1_unets, monkeypatch):
    """U-Nets that run in 16 bits as hosts make them: embeddings, norms and attention in the dtype of the weights."""
    monkeypatch.setattr("ldm.modules.attention._ATTN_PRECISION", "")
    halves = [copy.deepcopy(unet).bfloat16() for unet in sd1_unets]
    for unet in halves:
        unet.dtype = torch.bfloat16
        unet.time_embed.register_forward_pre_hook(lambda _, args: args[0].bfloat16())
        for module in unet.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.__class__ = torch.nn.GroupNorm
    z0 = randn(1, 4, 8, 16)
    _, exact = ditail.mix(*sd1_unets, z0, *conds(), **SETTINGS)
    _, rounded = ditail.mix(*halves, z0, *conds(), **SETTINGS)
    _, of_halves = ditail.mix(*halves, z0.bfloat16(), *(c.bfloat16() for c in conds()), **SETTINGS)
    for ours in (rounded, of_halves):
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().mean() < 0.15 * exact.abs().mean()


def test_the_dtypes_of_prompts_and_latents_need_not_be_the_unets(sd1_unets):
    z0, (cond, uncond, null) = randn(1, 4, 8, 8), conds()
    null = null.half()
    _, expected = ditail.mix(*sd1_unets, z0, cond, uncond, null.float(), **SETTINGS)
    _, ours = ditail.mix(*sd1_unets, z0.double(), cond.double(), uncond, null, **SETTINGS)
    assert (ours - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize(("change", "key"), [
    ({"steps": 0}, "steps"), ({"steps": 1000}, "steps"), ({"steps": 10**5000}, "steps"),
    ({"conv_ratio": 1.1}, "conv_ratio"), ({"attn_ratio": -0.1}, "attn_ratio"), ({"attn_ratio": None}, "attn_ratio"),
    ({"alpha": float("nan")}, "alpha"), ({"alpha": "2"}, "alpha"), ({"beta": True}, "beta"),
    ({"omega": float("inf")}, "omega"), ({"omega": 10**400}, "omega"),
    ({"z0": None}, "z0"), ({"z0": randn(4, 8, 8)}, "z0"), ({"z0": randn(1, 3, 8, 8)}, "z0"),
    ({"z0": randn(1, 4, 8, 12)}, "z0"), ({"z0": randn(0, 4, 8, 8)}, "z0"), ({"z0": randn(1, 4, 8, 8).long()}, "z0"),
    ({"z0": torch.full((1, 4, 8, 8), float("nan"))}, "z0"), ({"z0": randn(1, 4, 8, 8).to("meta")}, "z0"),
    ({"cond": randn(7, 32)}, "cond"), ({"cond": randn(1, 7, 24)}, "cond"), ({"uncond": randn(1, 0, 32)}, "uncond"),
    ({"z0": randn(2, 4, 8, 8), "uncond": randn(3, 7, 32)}, "z0"), ({"null": randn(2, 7, 32)}, "null"),
    ({"null": torch.full((1, 7, 32), float("inf"))}, "null"),
    ({"alphas_cumprod": ABAR.tolist()}, "alphas_cumprod"), ({"alphas_cumprod": ABAR[:999]}, "alphas_cumprod"),
    ({"alphas_cumprod": ABAR.flip(0)}, "alphas_cumprod"), ({"alphas_cumprod": ABAR * 2}, "alphas_cumprod"),
    ({"mask": torch.ones(1, 1, 4, 4)}, "mask"), ({"mask": torch.full((1, 1, 8, 8), 2.0)}, "mask"),
    ({"mask": 1}, "mask"), ({"mask": torch.full((1, 1, 8, 8), float("nan"))}, "mask"),
])
def test_mix_names_what_is_wrong(sd1_unets, change, key):
    arguments = dict(zip(("z0", "cond", "uncond", "null"), (randn(1, 4, 8, 8), *conds()), strict=True))
    with pytest.raises(DitailError) as caught:
        ditail.mix(*sd1_unets, **{**arguments, **SETTINGS, **change})
    assert caught.value.key == key
    assert str(caught.value).startswith(key)
    assert len(str(caught.value)) < 200


def test_mix_refuses_unets_for_other_prompts(sd1_unets):
    other = random_unet({**SD1, "context_dim": 48}, 1)
    with pytest.raises(DitailError, match="the source takes 32 numbers a token, the target 48"):
        ditail.mix(sd1_unets[0], other, randn(1, 4, 8, 8), *conds(), **SETTINGS)


def test_mix_raises_when_sampling_diverges(sd1_unets):
    target = copy.deepcopy(sd1_unets[1])
    target.out[2].weight.mul_(1e38)
    with pytest.raises(DitailError, match="sampling: the latents are no longer finite"):
        ditail.mix(sd1_unets[0], target, randn(1, 4, 8, 8), *conds(), **SETTINGS)


def test_mix_refuses_two_architectures(sd1_unets, sdxl_unet):
    with pytest.raises(DitailError, match="SD 1.x/2.x.*SDXL"):
        ditail.mix(sd1_unets[0], sdxl_unet, randn(1, 4, 8, 8), *conds(), **SETTINGS)


@pytest.mark.parametrize("which", [0, 1])
def test_unets_under_an_injection_are_not_mixed(sd1_unets, which):
    """`mix` would invert under it, or take the hooks of somebody else off."""
    cond, uncond, null = conds()
    outer = Injection(source_latents(), {"context": null}, ALWAYS)
    with inject(sd1_unets[which], outer):
        before = hooks_on(sd1_unets[which])
        with pytest.raises(DitailError, match="injection installed"):
            ditail.mix(*sd1_unets, randn(1, 4, 8, 16), cond, uncond, null, **SETTINGS)
        assert hooks_on(sd1_unets[which]) == before > 0
