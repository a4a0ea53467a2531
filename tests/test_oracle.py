"""`ditail.mix` against the latents that the authors' own code computed."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ditail
from ditail.method.schedule import ddim_timesteps, scaled_linear_alphas_cumprod

TOLERANCE = 1e-3
REFERENCE = Path(os.environ.get("DITAIL_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))
CASES = json.loads((REFERENCE / "cases.json").read_text())["cases"] if REFERENCE.is_dir() else {"none": {}}

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the oracle is not at {REFERENCE} (DITAIL_REFERENCE)")


@pytest.fixture(scope="module")
def unets():
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = json.loads((REFERENCE / "cases.json").read_text())["unet"]
    unets = []
    for name in ("source", "target"):
        unet = UNetModel(**config)
        unet.load_state_dict(load_file(REFERENCE / f"{name}_unet.safetensors"))
        unets.append(unet.eval())
    return unets


@pytest.mark.parametrize("name", CASES)
def test_mix_equals_the_authors_latents(unets, name):
    case, tensors = CASES[name], load_file(REFERENCE / "cases.safetensors")
    mask = None
    if case["mask"] == "left":
        mask = torch.zeros(1, 1, *tensors["z0"].shape[-2:])
        mask[..., : mask.shape[-1] // 2] = 1
    assert ddim_timesteps(case["steps"])[::-1] == case["timesteps"]
    before = [{k: v.clone() for k, v in u.state_dict().items()} for u in unets]
    keys = ("steps", "alpha", "beta", "omega", "conv_ratio", "attn_ratio")
    results = ditail.mix(*unets, *(tensors[k] for k in ("z0", "cond", "uncond", "null")), mask=mask,
                         alphas_cumprod=scaled_linear_alphas_cumprod(), **{k: case[k] for k in keys})
    for ours, theirs in zip(results, ("source_latents", "samples"), strict=True):
        expected = tensors[f"{name}/{theirs}"]
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() < TOLERANCE * expected.abs().max()
    for unet, state in zip(unets, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in unet.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
