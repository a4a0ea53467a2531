"""The samplers of the command line: their noise, and the tensors that they make."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchsde._brownian import brownian_interval

from ditail.method.schedule import alphas_cumprod_at, scaled_linear_alphas_cumprod
from ditail.standalone.names import SAMPLERS
from ditail.standalone.samplers import Sampler, seeded_noise


class Float64s(TorchDispatchMode):
    """Records the operations that make float64 tensors on a device; MPS has none."""

    def __init__(self, device):
        super().__init__()
        self.device, self.found = device, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and (result.device.type, result.dtype) == (self.device, torch.float64):
            self.found.append(str(function))
        return result


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_make_no_float64_tensor_on_the_device(monkeypatch, name):
    """With the meta device in place of MPS, which is not at hand."""
    monkeypatch.setattr(brownian_interval, "_randn",
                        lambda size, dtype, device, seed: torch.empty(size, dtype=dtype, device=device))
    sampler = Sampler(name, 4, scaled_linear_alphas_cumprod(), (1, 2))
    with Float64s("meta") as seen:
        z = torch.empty(2, 4, 8, 8, device="meta")
        *_, (_, _, last) = sampler.run(lambda x, t: x * 0.9, z)
    assert last.device == z.device and seen.found == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_of_a_row_is_of_its_own_seed(name):
    """In a batch as alone, bit for bit."""
    def sampled(*seeds):
        sampler = Sampler(name, 4, scaled_linear_alphas_cumprod(), seeds)
        *_, (_, _, last) = sampler.run(lambda x, t: x * 0.9, seeded_noise((4, 8, 8), seeds))
        return last

    assert torch.equal(sampled(3, 4), torch.cat([sampled(3), sampled(4)]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_has_the_noise_of_its_timestep(name):
    """An ancestral sampler that adds the start's noise once more has 1.4 times as much after its first step."""
    sampler, alphas_cumprod = Sampler(name, 20, scaled_linear_alphas_cumprod(), (3, 4)), scaled_linear_alphas_cumprod()

    def deviation(t):
        return float((1 - alphas_cumprod_at(alphas_cumprod, torch.tensor([t], dtype=torch.float64))) ** 0.5)

    # The eps of noise around an empty image.
    steps = sampler.run(lambda x, t: x / deviation(t), seeded_noise((4, 32, 32), [3, 4]))
    for t, vp, _ in steps:
        assert 0.95 < float(vp.std()) / deviation(t) < 1.05
