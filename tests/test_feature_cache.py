"""The cache of kept features by itself: what it holds, drops and refuses."""

import torch

from ditail import FeatureCache


def test_the_cache_drops_the_least_recently_used_keys():
    cache, one = FeatureCache(10 * 4), {"layer": torch.zeros(4)}
    assert cache.put("a", 1, one)
    assert cache.put("b", 1, one)
    assert cache.get("a", 1)
    assert cache.put("c", 1, one)
    assert [bool(cache.get(key, 1)) for key in "abc"] == [True, False, True]
    assert cache.put("c", 1, {"layer": torch.zeros(5)})
    assert not cache.put("c", 2, {"layer": torch.zeros(6)})
    assert cache.put("c", 2, {"layer": torch.zeros(5)})
    assert (len(cache), cache.nbytes) == (2, 40)
    cache.drop("c")
    cache.drop("c")
    assert (len(cache), cache.nbytes) == (0, 0)


def test_a_smaller_or_moved_cache_drops_what_it_has_to():
    cache, one = FeatureCache(100), {"layer": torch.zeros(4)}
    for key in "abc":
        cache.put(key, 1, one)
    cache.resize(40, "cpu")
    assert [bool(cache.get(key, 1)) for key in "abc"] == [False, True, True]
    cache.resize(40, "meta")
    assert (len(cache), cache.nbytes) == (0, 0)
    cache.put("a", 1, one)
    assert cache.get("a", 1)["layer"].device.type == "meta"


def test_a_full_gpu_empties_the_cache_and_not_the_job():
    class OnAFullGPU(torch.Tensor):
        def to(self, *_, **__):
            raise torch.cuda.OutOfMemoryError("no memory left, says the test")

    cache = FeatureCache(100)
    cache.put("a", 1, {"layer": torch.zeros(4)})
    assert not cache.put("b", 1, {"layer": torch.zeros(4).as_subclass(OnAFullGPU)})
    assert (len(cache), cache.nbytes) == (0, 0)


def test_kept_tensors_are_copies():
    cache, tensor = FeatureCache(100), torch.zeros(4)
    cache.put("a", 1, {"layer": tensor})
    tensor += 1
    assert not cache.get("a", 1)["layer"].any()
