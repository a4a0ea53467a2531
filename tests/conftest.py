"""Small real ldm U-Nets, and the last lines that name what could not run."""

import os
import secrets
from pathlib import Path

import pytest
import torch

REFERENCE = Path(os.environ.get("DITAIL_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))

SMALL = {
    "image_size": 16, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 2, "num_heads": 4,
    "use_spatial_transformer": True, "context_dim": 32, "use_checkpoint": False, "legacy": False,
}
SD1 = {**SMALL, "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 2, 2], "transformer_depth": 1}
# SD 2.x: linear projections around the transformer, heads of a fixed width.
SD2 = {**SD1, "num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True}
SDXL = {**SMALL, "attention_resolutions": [4, 2], "channel_mult": [1, 2, 2], "transformer_depth": 2,
        "context_dim": [32, 32], "num_classes": 10}


def random_unet(config: dict, seed: int):
    """A U-Net of `config` whose zero-initialised layers are random too, so that every layer matters."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    class EachDepth(UNetModel):
        """ldm wants one context a transformer depth (sgm's SDXL U-Net takes one for all)."""

        def forward(self, x, timesteps, context, **kwargs):
            return super().forward(x, timesteps, context=[context] * config["transformer_depth"], **kwargs)

    torch.manual_seed(seed)
    unet = EachDepth(**config)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def paths():
    """The demo checkpoints: style -> path."""
    from ditail.standalone import demo_checkpoints

    return demo_checkpoints.paths()


@pytest.fixture(scope="session")
def ray():
    """Ray, whose clusters here have a token that is not kept in the home folder."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture(scope="session")
def sd1_unets():
    return random_unet(SD1, 1), random_unet(SD1, 2)


@pytest.fixture(scope="session")
def sdxl_unet():
    return random_unet(SDXL, 3)


@pytest.fixture(scope="session")
def unets(sd1_unets, sdxl_unet):
    return {"sd1": sd1_unets[1], "sd2": random_unet(SD2, 4), "sdxl": sdxl_unet}


def pytest_terminal_summary(terminalreporter):
    """Name what did not run, and why, in the last lines."""
    reasons = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid.split("::")[0])
    for reason, files in reasons.items():
        terminalreporter.write_line(f"not run: {', '.join(sorted(set(files)))} ({len(files)} tests): {reason}")
