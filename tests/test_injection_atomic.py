"""Installing an injection either succeeds or leaves the U-Net as it was, wherever it raises."""

import pytest
import torch

from ditail import Injection, SourceLatents, inject
from ditail.method.schedule import InjectionSteps, scaled_linear_alphas_cumprod
from ditail.unet.shortcuts import Shortcut
from tests.unets import SD1, random_unet

ABAR = scaled_linear_alphas_cumprod()
TIMESTEPS = (101, 501, 901)
ERRORS = (ValueError, MemoryError, KeyboardInterrupt)


@pytest.fixture(scope="module")
def unet():
    return random_unet(SD1, 6)


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def injection() -> Injection:
    source = SourceLatents(TIMESTEPS, randn(3, 1, 4, 8, 8, seed=5), ABAR)
    return Injection(source, {"context": randn(1, 7, 32, seed=13)},
                     InjectionSteps(float("-inf"), float("-inf")))


def traces(unet) -> list[str]:
    """Every hook, replaced forward and mark on the modules of a U-Net."""
    traces = []
    for name, module in unet.named_modules():
        attributes = module.__dict__
        traces += [f"{name} {kind}" for kind in ("_forward_hooks", "_forward_pre_hooks")
                   for _ in attributes[kind]]
        traces += [f"{name} {key}" for key in attributes if key in ("forward", "_forward") or key.startswith("_ditail")]
    return traces


def run(unet):
    with torch.no_grad():
        return unet(randn(2, 4, 8, 8, seed=1), torch.tensor([501, 501]), randn(2, 7, 32, seed=2))


class Bomb:
    """Raises before or after the n-th call of any of the functions that install hooks and shortcuts."""

    def __init__(self, monkeypatch, call: int, error: type[BaseException], when: str = "before"):
        self.call, self.error, self.when, self.count = call, error, when, 0
        for owner, name in ((torch.nn.Module, "register_forward_hook"), (torch.nn.Module, "register_forward_pre_hook"),
                            (Shortcut, "__init__"), (Shortcut, "__enter__")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*args, **kwargs):
            self.count += 1
            due = self.count == self.call
            if due and self.when == "before":
                raise self.error("injected")
            result = function(*args, **kwargs)
            if due:
                raise self.error("injected")
            return result

        return call


def calls_of_an_install(unet) -> int:
    with pytest.MonkeyPatch.context() as patch, inject(unet, injection()):
        bomb = Bomb(patch, 0, ValueError)
        injection().install(unet)
    return bomb.count


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", ERRORS)
def test_install_that_raises_leaves_the_unet_untouched(unet, monkeypatch, error, when):
    """Before or after the call did its work."""
    before = run(unet)
    calls = calls_of_an_install(unet)
    assert calls > 20
    for call in range(1, calls + 1):
        with monkeypatch.context() as patch:
            Bomb(patch, call, error, when)
            with pytest.raises(error, match="injected"):
                injection().install(unet)
        assert traces(unet) == [], f"call {call} of {calls}"
    assert torch.equal(run(unet), before)


def test_a_failed_second_install_removes_the_first(unet, monkeypatch):
    before = run(unet)
    injection().install(unet)
    with monkeypatch.context() as patch:
        Bomb(patch, 5, ValueError)
        with pytest.raises(ValueError, match="injected"):
            injection().install(unet)
    assert traces(unet) == []
    assert torch.equal(run(unet), before)
