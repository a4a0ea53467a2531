"""The cache of source latents and its key."""

import pytest
import torch

from ditail import LatentCache, SourceLatents
from ditail.latents import latents_key
from ditail.schedule import scaled_linear_alphas_cumprod


def entry(value=0.0, steps=2):
    latents = torch.full((steps, 1, 4, 8, 8), float(value))
    return SourceLatents(range(1, steps + 1), latents, scaled_linear_alphas_cumprod())


def test_the_least_recently_used_entry_goes_first():
    cache = LatentCache(budget=2 * entry().nbytes)
    cache.put("a", entry(1))
    cache.put("b", entry(2))
    assert cache.get("a").latents.max() == 1
    cache.put("c", entry(3))
    assert cache.get("b") is None
    assert cache.get("a") is not None and cache.get("c") is not None
    assert cache.nbytes == 2 * entry().nbytes
    cache.clear()
    assert len(cache) == 0


def test_an_entry_over_the_whole_budget_is_not_kept():
    cache = LatentCache(budget=10)
    cache.put("a", entry())
    assert len(cache) == 0 and cache.get("a") is None


@pytest.mark.parametrize("change", [
    {"alpha": 3.0000001}, {"alpha": 3}, {"prompt": "a fox "}, {"timesteps": [1.0, 52.0]}, {"lora": [["x", 0.7]]},
    {"image": torch.ones(3).double()}, {"image": torch.zeros(3)}, {"image": torch.ones(1, 3)}, {"vae": None},
])
def test_no_two_settings_share_a_key(change):
    base = {"alpha": 3.0, "prompt": "a fox", "timesteps": [1.0, 51.0], "lora": [], "image": torch.ones(3), "vae": "x"}
    assert latents_key(base) == latents_key(dict(reversed(base.items())))
    assert latents_key({**base, **change}) != latents_key(base)


def test_what_a_key_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="object"):
        latents_key({"model": object()})
