"""Lets the WebUI run its half precision on a CPU: bfloat16 stands in for float16, the CPU's autocast for CUDA's.

torch 2.1 has no float16 convolution on the CPU. Python reads this file at its start, before the WebUI does.
"""

import safetensors.torch
import torch

FLOAT16 = torch.float16
load_file = safetensors.torch.load_file


def load_as_it_is(*args, **kwargs):
    """Files keep their own float16, which safetensors looks up by its name."""
    torch.float16 = FLOAT16
    try:
        return load_file(*args, **kwargs)
    finally:
        torch.float16 = torch.bfloat16


safetensors.torch.load_file = load_as_it_is
torch.float16 = torch.half = torch.bfloat16
torch.Tensor.half = torch.Tensor.bfloat16
torch.nn.Module.half = torch.nn.Module.bfloat16
torch.cuda.get_device_capability = lambda *_: (8, 0)
torch.cuda.current_device = lambda: 0
torch.is_autocast_enabled = torch.is_autocast_cpu_enabled


class Autocast(torch.autocast):
    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        super().__init__("cpu", torch.bfloat16, enabled, cache_enabled)


def normed(norm):
    """CUDA's norms take an input of another type than their weights."""
    def call(x, size, weight=None, bias=None, eps=1e-5):
        weight, bias = (p if p is None else p.to(x.dtype) for p in (weight, bias))
        return norm(x, size, weight, bias, eps)

    return call


torch.autocast = Autocast
torch.nn.functional.group_norm = normed(torch.nn.functional.group_norm)
torch.nn.functional.layer_norm = normed(torch.nn.functional.layer_norm)


def as_numpy(tensor, **kwargs):
    """numpy has no bfloat16."""
    return to_numpy(tensor.float() if tensor.dtype == torch.bfloat16 else tensor, **kwargs)


to_numpy = torch.Tensor.numpy
torch.Tensor.numpy = as_numpy
