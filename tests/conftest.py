"""Fixtures that many tests share, and the last lines, which name what could not run."""

import os
import secrets

import pytest

from tests.unets import SD1, SD2, SDXL, random_unet

# The files that take longest come first, so that no process is left with one at the end.
LONGEST = ("test_command_line", "test_fanout", "test_standalone", "test_cost", "test_methods", "test_bench",
           "test_savings", "test_evaluation", "test_mixing", "test_mix_command")


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, as some tests wait for other processes, and four at most."""
    return min((os.cpu_count() or 1) + 1, 4)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def paths():
    """The demo checkpoints: style -> path."""
    from ditail.standalone import demo_checkpoints

    return demo_checkpoints.paths()


@pytest.fixture(scope="session")
def ray():
    """Ray, whose clusters here have a token that is not kept in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Ray reads the variables when it is imported.
        pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
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
