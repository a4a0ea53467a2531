"""`python -m lab bench` on a small U-Net: what it writes, and that its ratios hang together."""

import csv
import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from lab import bench, counts
from lab.cli import build_parser

SMALL = dataclasses.replace(counts.SD15, name="small", config={**counts.SD15.config, "model_channels": 32,
                                                               "context_dim": 32, "num_heads": 4})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one benchmark writes."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "COUNTED", ((SMALL, 64), (SMALL, 128)))
        patch.setattr(bench, "BATCHES", (1, 4))
        patch.setattr(bench, "TIMED", dict.fromkeys(("cpu", "cuda"), (((SMALL, 64),), (1,))))
        bench.run(folder, rounds=1)
    return folder


@pytest.fixture
def lines(folder):
    return lambda name: list(csv.DictReader((folder / f"{name}.csv").open()))


@pytest.mark.slow
def test_bench_writes_tables_and_a_plot(lines, folder):
    counted, timed = lines("flops"), lines("time")
    assert [(x["model"], x["pixels"], x["batch"]) for x in counted] == [
        ("small", side, batch) for side in ("64", "128") for batch in ("1", "4")]
    for line in counted:
        cold, warm, hot = (float(line[way]) for way in ("cold", "warm", "hot"))
        assert cold - warm == pytest.approx(0.5 / int(line["batch"]), abs=2e-4)
        assert hot < 1 < cold < float(line["three chunks"]) == 2
    assert [x["batch"] for x in timed] == ["1"]
    assert float(timed[0]["plain_seconds"]) > 0
    text = (folder / "bench.md").read_text()
    assert text.count("| small | ") == 4 + 1 + (len(bench.MEMORY_STEPS) if (folder / "memory.csv").exists() else 0)
    assert Image.open(folder / "bench.png").width > 1000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no resettable peak memory on this system")
def test_memory_of_the_source_pass_is_told_where_the_system_does(lines):
    assert [x["steps"] for x in lines("memory")] == [str(n) for n in bench.MEMORY_STEPS]
    assert all(float(x["peak_mb"]) >= 0 for x in lines("memory"))


def test_a_job_is_the_sum_of_its_steps():
    runs = counts.Runs(SMALL, counts.build(SMALL), (8, 8), 1, steps=20, conv_ratio=0.8, attn_ratio=0.5)
    cost = {"plain": 2, "invert": 1, "both": 3, "feature": 2.5, "hot both": 1.5, "hot feature": 1.75, "chunks": 3,
            "invert all": 1}
    assert runs.ratios(cost) == pytest.approx({
        "cold": (20 * 1 + 10 * 3 + 6 * 2.5 + 4 * 2) / 40, "warm": (10 * 3 + 6 * 2.5 + 4 * 2) / 40,
        "hot": (10 * 1.5 + 6 * 1.75 + 4 * 2) / 40, "three chunks": 2})


@pytest.mark.slow
def test_every_kind_of_step_runs_the_source_each_time():
    """A second round would be cheaper than the first if an earlier source run were found again."""
    runs = counts.Runs(SMALL, counts.build(SMALL), (8, 8), 1)
    for step in runs.kinds().values():
        assert counts.flops(step) == counts.flops(step)
    both = runs.kinds()["both"]
    assert counts.flops(both) > counts.flops(runs.kinds()["hot both"])


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--pixels", "100"], ["--pixels", "0"]])
def test_bench_refuses_what_it_cannot_time(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["bench", *wrong])
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("lab: ") and wrong[0] in error[0]
