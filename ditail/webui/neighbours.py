"""The ControlNet extension: what it does to the U-Net is for the picture, not for the source.

It replaces the U-Net's `forward` before a job's `init` and keeps what it adds there in a list, which these functions
empty for a while. Its scripts are known by that list, as an extension's folder and module names are not its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DitailError
from ..method.layers import ATTENTION
from ..method.schedule import InjectionSteps


def _controlnets(p) -> list:
    """The job's scripts that have a ControlNet at work."""
    return [script for script in getattr(p.scripts, "alwayson_scripts", ())
            if getattr(getattr(script, "latest_network", None), "control_params", None)]


@contextmanager
def without_controlnet(p) -> Iterator[None]:
    """Run a block in which ControlNet adds nothing to the U-Net."""
    emptied = [(script.latest_network, script.latest_network.control_params) for script in _controlnets(p)]
    for network, _ in emptied:
        network.control_params = []
    try:
        yield
    finally:
        for network, params in emptied:
            network.control_params = params


def hook_controlnet_again(p) -> None:
    """After models were loaded: the target's U-Net may be a new object, which ControlNet has not seen."""
    for script in _controlnets(p):
        script.process(p, *p.script_args[script.args_from : script.args_to])


def check_controlnet(p, steps: InjectionSteps) -> None:
    """Raise DitailError where ControlNet rewrites the self-attention that is to be injected into."""
    kinds = {param.control_model_type.name for script in _controlnets(p)
             for param in script.latest_network.control_params}
    attention = any(layer.kind == ATTENTION for layer in steps.windows) or (
        not steps.windows and steps.attention_above < float("inf"))
    if "AttentionInjection" in kinds and attention:
        raise DitailError("attn_ratio: ControlNet's reference preprocessors rewrite the self-attention that Ditail "
                          "injects into; set it to 0, or switch that unit off", "attn_ratio")
