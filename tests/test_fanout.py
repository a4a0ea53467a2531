"""Fanning out: the same results in this process, in workers of this machine and on a cluster, also if one is killed."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ditail import DitailError
from ditail.job import source_pass
from ditail.standalone import demo_checkpoints, fanout, host, matrix, matrix_folder, run
from ditail.standalone.arguments import prompts_of
from ditail.standalone.cli import main
from ditail.standalone.files import save_image
from lab import cli as lab_cli
from lab import costs, evaluate
from tests.fanout_tasks import Task, count, start
from tests.processes import Marked

ROOT = Path(__file__).parents[1]
PROMPT = "a fox on mint"
DIE = "DITAIL_TEST_DIES"


class DyingCellTask(matrix.CellTask):
    """The first process that has made its images is killed before it hands them over."""

    def run(self, load):
        result = super().run(load)
        if not self.cells[0].is_plain and count(Path(os.environ[DIE])) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


@pytest.fixture(scope="module", autouse=True)
def modules():
    """Workers find the modules of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def dies(tmp_path_factory):
    """The file in which processes of the cluster count how often they made cells (see `DyingCellTask`)."""
    return tmp_path_factory.mktemp("cluster") / "dies"


@pytest.fixture(scope="module")
def cluster(ray, dies):
    """The address of a Ray cluster of two cores that was there before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}",
               "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, DIE: str(dies)})
    try:
        wait_for(process, fanout.Options(address=f"127.0.0.1:{port}"))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(process, options):
    """Until the cluster can be joined: it listens before it has any machine."""
    end = time.monotonic() + 300
    while True:
        assert process.poll() is None, "the Ray cluster did not start"
        try:
            with fanout.joined_ray(options, 1):
                return
        except DitailError:
            assert time.monotonic() < end, "the Ray cluster can't be joined"
            time.sleep(1)


@pytest.fixture(params=["here", "workers", "cluster"])
def options(request):
    if request.param == "here":
        return fanout.Options(workers=1)
    request.getfixturevalue("ray")
    if request.param == "workers":
        return fanout.Options(workers=2)
    return fanout.Options(address=request.getfixturevalue("cluster"))


@pytest.mark.slow
def test_tasks_are_done_once_or_tried_again_then_named_and_nothing_is_left(options, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fanout, "TRIES", 2)
    before, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(2)
    tasks = [Task(0), Task(1, "raise", tmp_path / "1", times=1), Task(2, "raise", tmp_path / "2", times=9),
             Task(3, "bad"), *(Task(n) for n in range(4, 7))]
    if options.workers != 1:
        tasks += [Task(7, "die", tmp_path / "7", times=1), Task(8, "die", tmp_path / "8", times=9)]
    try:
        with options.open(start, len(tasks)) as workers:
            results = {task.number: result for task, result in fanout.fan_out(iter(tasks), workers)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert dict(os.environ) == environment
    assert results == {t.number: (t.number**2, 1, 1) for t in tasks if t.number not in (2, 3, 8)}
    assert workers.failed.keys() == {t.name for t in tasks if t.number in (2, 3, 8)}
    assert (workers.failed["task 2"], workers.failed["task 3"]) == ("RuntimeError: no luck", "steps: 0 is too few")
    assert all(p.stat().st_size == 2 for p in tmp_path.iterdir())
    assert "task 1 failed, try 1 of 2: RuntimeError: no luck" in caplog.text
    with pytest.raises(fanout.TasksFailed, match=r"failed: .*task 2 \(RuntimeError: no luck\)"):
        fanout.raise_failed(workers.failed)


@pytest.mark.slow
def test_processes_end_with_a_killed_parent(ray, tmp_path):
    """Also in the middle of a task."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom ditail.standalone import fanout\n"
        "class Sleep:\n    def __init__(self, name): self.name = name\n"
        "    def run(self, state):\n        Path(sys.path[0]).joinpath(self.name).touch(); time.sleep(600)\n"
        "if __name__ == '__main__':\n    with fanout.Options(workers=2).open(dict, 2) as workers:\n"
        "        list(fanout.fan_out([Sleep('a'), Sleep('b')], workers))\n".replace("sys.path[0]", repr(str(tmp_path))))
    # With a token, two of Ray's own processes wait a minute for a head that has gone.
    process = Marked([sys.executable, script], tmp_path, RAY_AUTH_MODE="disabled")
    process.wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    assert len(process.family()) > 3
    process.popen.kill()
    process.popen.wait()
    process.wait_until(lambda: not process.family(), ended=True)


@pytest.mark.parametrize(("options", "asking"), [
    (["--ray"], "--ray"), (["--workers=2"], "--workers"), (["--address=auto", "--workers=2"], "--address")])
def test_without_ray_one_sentence_says_how_to_install_it(monkeypatch, paths, tmp_path, capfd, options, asking):
    monkeypatch.setitem(sys.modules, "ray", None)
    for function, command, program in ((main, arguments(paths, tmp_path), "ditail"),
                                  (lab_cli.main, ["evaluate", f"--out={tmp_path}"], "lab")):
        assert function([*command, *options]) == 2
        error = capfd.readouterr().err.strip().splitlines()
        assert len(error) == 1 and error[0].startswith(f"{program}: {asking}: needs Ray")
        assert error[0].endswith("pip install ray")
    assert not list(tmp_path.iterdir())


def test_an_address_where_nothing_listens_is_one_sentence(ray, paths, tmp_path, capfd):
    assert main([*arguments(paths, tmp_path), "--address=127.0.0.1:1"]) == 2
    assert "ditail: --address: can't join Ray at '127.0.0.1:1'" in capfd.readouterr().err


def arguments(paths, out, *more):
    return ["matrix", str(paths["noto"]), str(paths["ink"]), f"--prompt={PROMPT}", f"--out={out}", "--steps=2",
            "--width=64", "--height=64", *more]


def pngs(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "matrix.png"}


@pytest.fixture(scope="module")
def base(paths, tmp_path_factory):
    """A matrix of one prompt and seed, made in this process."""
    out = tmp_path_factory.mktemp("matrix") / "made"
    assert main(arguments(paths, out)) == 0
    return out


@pytest.mark.slow
def test_a_cluster_with_a_killed_process_makes_the_same_matrix(cluster, dies, monkeypatch, paths, base, tmp_path):
    out = tmp_path / "out"
    monkeypatch.setattr(matrix, "CellTask", DyingCellTask)
    assert main(arguments(paths, out, "--seeds=0,1", f"--address={cluster}")) == 0
    assert dies.stat().st_size == 3
    assert {f"{PROMPT}/seed 0/{name}": data for name, data in pngs(base).items()}.items() <= pngs(out).items()
    assert len(pngs(out)) == 2 * 5


@pytest.mark.slow
def test_evaluate_gives_the_same_numbers_on_a_cluster(cluster, tmp_path, monkeypatch):
    # Counting the presets' FLOPs takes seconds and is tested elsewhere.
    monkeypatch.setattr(costs, "preset_costs", dict)
    command = ["evaluate", "--scenes=1", "--rows=plain"]
    assert lab_cli.main([*command, f"--out={tmp_path / 'here'}", "--workers=1"]) == 0
    assert lab_cli.main([*command, f"--out={tmp_path / 'ray'}", f"--address={cluster}"]) == 0
    assert [p.name for p in sorted((tmp_path / "ray").iterdir())] == [
        "plot.png", evaluate.RESULTS, "rows.csv", "tables.md"]
    assert (tmp_path / "here" / "rows.csv").read_bytes() == (tmp_path / "ray" / "rows.csv").read_bytes()


@pytest.fixture
def calls(monkeypatch):
    """How often a matrix loaded, sampled an image, generated a source that is no image of its own, and inverted."""
    modules = {"load_model": host, "sample": run, "generate": host, "invert": source_pass}
    counts = dict.fromkeys(modules, 0)

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            return function(*args)

        return call

    for name, module in modules.items():
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counts


def test_nothing_is_made_or_loaded_twice(calls, paths, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox on mint\n\n  a pear on pink \n")
    command = arguments(paths, tmp_path / "out", f"--prompts={prompts}", "--seeds=1,2")
    assert main(command) == 0
    assert calls == {"load_model": 4, "sample": 16, "generate": 0, "invert": 8}
    folders = {p.parent for p in (tmp_path / "out").rglob("*.png")}
    assert folders == {tmp_path / "out" / p / f"seed {s}" for p in ("a fox on mint", "a pear on pink") for s in (1, 2)}
    before = stamps(tmp_path / "out")
    assert main(command) == 0
    assert sum(calls.values()) == 28 and stamps(tmp_path / "out") == before


def test_a_content_image_is_inverted_once_a_checkpoint_and_prompt(calls, paths, tmp_path, capfd):
    content = tmp_path / "content.png"
    demo_checkpoints.held_out().images["flat"][0].save(content)
    command = arguments(paths, tmp_path / "out", "--seeds=1,2", f"--image={content}")
    assert main(command) == 0
    assert calls == {"load_model": 4, "sample": 8, "generate": 0, "invert": 2}
    demo_checkpoints.held_out().images["flat"][1].save(content)
    assert main(command) == 2
    assert "made with other settings or checkpoints (image)" in capfd.readouterr().err


def test_the_half_written_is_made_again_and_the_rest_kept(calls, base, paths, tmp_path, capfd):
    out = shutil.copytree(base, tmp_path / "out")
    before, data = stamps(out), pngs(out)
    cut, latents = out / "house-noto in house-ink.png", list((out / ".latents").iterdir())
    assert len(latents) == 4  # of each checkpoint, what was generated and its inversion
    cut.write_bytes(cut.read_bytes()[:2000])
    cut.with_name(f"{cut.name}.part").write_bytes(b"half")
    assert main(arguments(paths, out)) == 0
    assert calls == {"load_model": 1, "sample": 1, "generate": 0, "invert": 0}
    assert pngs(out) == data
    cut.unlink()
    for path in latents:
        path.write_bytes(path.read_bytes()[:2000])
    assert main(arguments(paths, out)) == 0
    assert calls == {"load_model": 3, "sample": 2, "generate": 1, "invert": 1}
    assert pngs(out) == data
    changed = {p for p, stamp in stamps(out).items() if stamp != before[p]}
    assert {p for p in changed if p.suffix == ".png"} == {cut}
    assert main(arguments(paths, out, "--cfg=3")) == 2
    assert "made with other settings or checkpoints (omega)" in capfd.readouterr().err


def test_a_matrix_may_grow_by_seeds_and_prompts(calls, base, paths, tmp_path):
    out = shutil.copytree(base, tmp_path / "out")
    assert main(arguments(paths, out, "--seeds=5,0", "--prompt=A fox: on pink?")) == 0
    assert calls["sample"] == 3 * 4 and calls["invert"] == 3 * 2
    assert pngs(out / PROMPT / "seed 0") == pngs(base)
    assert (out / matrix_folder.folder_name("A fox: on pink?") / "seed 5" / "matrix.png").is_file()
    assert main(arguments(paths, out)) == 0
    assert calls["sample"] == 3 * 4 and calls["invert"] == 3 * 2


def test_another_checkpoint_of_the_same_name_is_noticed(base, paths, tmp_path, capfd):
    out = shutil.copytree(base, tmp_path / "out")
    for name in ("noto", "ink"):
        for suffix in (".safetensors", ".yaml"):
            (tmp_path / paths[name].with_suffix(suffix).name).symlink_to(paths[name].with_suffix(suffix))
    moved = {name: tmp_path / path.name for name, path in paths.items()}
    assert main(arguments(moved, out)) == 0
    moved["ink"].unlink()
    moved["ink"].write_bytes(paths["flat"].read_bytes())
    before = pngs(out)
    assert main(arguments(moved, out)) == 2
    assert "house-ink in house-noto.png: was made with other settings or checkpoints (source)" in capfd.readouterr().err
    assert pngs(out) == before


@pytest.mark.parametrize(("is_plain", "named", "lost"), [
    (False, "house-noto in house-ink", ["noto in house-ink"]),
    (True, "source house-ink", ["ink in house-ink", "ink in house-noto"]),
])
def test_a_matrix_says_what_failed_and_the_next_run_makes_it(monkeypatch, base, paths, tmp_path, capfd, is_plain, named,
                                                             lost):
    out, works = tmp_path / "out", matrix.images_of

    def fails(host, job, **options):
        if host.model().name == "house-ink" and job.is_plain == is_plain:
            raise RuntimeError("no memory")
        return works(host, job, **options)

    monkeypatch.setattr(matrix, "images_of", fails)
    assert main(arguments(paths, out)) == 1
    words = f'ditail: failed: {named} of "{PROMPT}" (RuntimeError: no memory); the rest is kept'
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith(words)
    assert pngs(out).keys() == pngs(base).keys() - {"matrix.png", *(f"house-{name}.png" for name in lost)}
    monkeypatch.setattr(matrix, "images_of", works)
    assert main(arguments(paths, out)) == 0
    assert pngs(out) == pngs(base)


def test_the_content_image_may_be_in_the_settings(calls, settings, paths, tmp_path, capfd):
    content = demo_checkpoints.held_out().images["flat"][0].resize((64, 64))
    content.save(tmp_path / "content.png")
    encoded = base64.b64encode((tmp_path / "content.png").read_bytes()).decode()
    assert main(arguments(paths, tmp_path / "out", settings(image="content.png"))) == 0
    assert main(arguments(paths, tmp_path / "out", settings(image=encoded))) == 0
    assert calls["invert"] == 2
    assert main(arguments(paths, tmp_path / "out", settings(image="kontent.png"))) == 2
    assert capfd.readouterr().err.endswith(f"ditail: image: {tmp_path}/kontent.png does not exist\n")
    assert main(arguments(paths, tmp_path / "generated", settings(image=""))) == 0
    assert calls["invert"] == 4


def test_a_grid_does_not_overwrite_the_content_image(paths, tmp_path, capfd):
    content = tmp_path / "matrix.png"
    demo_checkpoints.held_out().images["flat"][0].save(content)
    before = content.read_bytes()
    assert main(arguments(paths, tmp_path, f"--image={content}")) == 2
    assert f"--out: {content} would overwrite an input" in capfd.readouterr().err
    assert content.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["matrix.png"]


def test_prompts_of_a_file_have_no_byte_order_mark(paths, tmp_path, capfd):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT, encoding="utf-8-sig")
    assert prompts_of(Namespace(prompt=None, prompts=prompts)) == [PROMPT]
    prompts.write_bytes("ein Füchslein".encode("latin-1"))
    assert main(arguments(paths, tmp_path / "out", f"--prompts={prompts}")) == 2
    assert f"ditail: --prompts: {prompts} can't be read ('utf-8' codec" in capfd.readouterr().err


def test_sources_in_the_cache_are_found_whatever_the_threads_of_the_command(calls, paths, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        command = arguments(paths, tmp_path / "out", f"--cache={tmp_path / 'cache'}")
        assert main(command) == 0
        shutil.rmtree(tmp_path / "out")
        assert main(command) == 0
    finally:
        torch.set_num_threads(before)
    assert calls["invert"] == 2


def test_sources_of_another_device_are_made_once(calls, monkeypatch, paths, tmp_path):
    """As on a cluster whose tasks run on GPUs while the command itself has none."""
    runs, fingerprint, device = matrix.CellTask.run, host.FileCheckpoints.fingerprint, ["cpu"]

    def run_elsewhere(task, load):
        device[0] = "cuda"
        try:
            return runs(task, load)
        finally:
            device[0] = "cpu"

    monkeypatch.setattr(matrix.CellTask, "run", run_elsewhere)
    monkeypatch.setattr(host.FileCheckpoints, "fingerprint",
                        lambda *args: {**fingerprint(*args), "device": device[0]})
    assert main(arguments(paths, tmp_path / "out")) == 0
    assert calls["invert"] == 2


@pytest.mark.parametrize(("change", "words"), [
    ("--prompts=nowhere.txt", "--prompts: nowhere.txt can't be read"),
    ("--width=100", "width: must be a multiple of 8, here of 64 pixels, got 100"),
])
def test_bad_input_is_told_before_anything_is_made(paths, tmp_path, capfd, change, words):
    assert main(arguments(paths, tmp_path / "out", change)) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_matrix_needs_a_prompt(paths, tmp_path, capfd):
    assert main([a for a in arguments(paths, tmp_path / "out") if not a.startswith("--prompt")]) == 2
    assert "--prompt: give one or more" in capfd.readouterr().err


@pytest.mark.parametrize("seeds", ["1,x", "-1", ""])
def test_bad_seeds_are_named(paths, tmp_path, capfd, seeds):
    with pytest.raises(SystemExit) as caught:
        main(arguments(paths, tmp_path / "out", f"--seeds={seeds}"))
    assert caught.value.code == 2 and "--seed must be a whole number from 0" in capfd.readouterr().err


def test_folders_of_prompts_differ_and_can_be_made(tmp_path):
    prompts = ["a fox on mint", "A fox on mint", "../a fox", "", "?!", "x" * 300, "x" * 301, "ein Füchslein, rot.",
               "con", "nul", "com1", "lpt\u00b2", "console"]
    names = [matrix_folder.folder_name(p) for p in prompts]
    # Windows has devices of these names.
    assert not {"con", "nul", "com1", "lpt\u00b2"} & set(names) and names[-1] == "console"
    assert names[0] == prompts[0] and len({n.lower() for n in names}) == len(names)
    for name in names:
        (tmp_path / name).mkdir()
        assert (tmp_path / name).parent == tmp_path and name not in (".", "..")


def test_a_folder_of_an_older_version_is_refused(base, paths, tmp_path, capfd):
    """Its source latents were those that the generation passed through."""
    out = shutil.copytree(base, tmp_path / "out")
    for path in out.glob("*.png"):
        save_image(Image.open(path), path, {"alpha": 3.0, "prompt": PROMPT, "seed": 0})
    before = pngs(out)
    assert main(arguments(paths, out)) == 2
    words = r"\.png: was made by an older version of Ditail \(.*\), whose images differ; choose another folder"
    assert re.search(words, capfd.readouterr().err)
    assert pngs(out) == before


@pytest.fixture
def settings(tmp_path):
    """A file of settings: a further source of a third checkpoint, whose path is relative to the file."""
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")

    def write(**values):
        (tmp_path / "settings.json").write_text(json.dumps(values))
        return f"--settings={tmp_path / 'settings.json'}"

    return write


@pytest.mark.parametrize("options", [
    ["--preset=Balanced"], ["--layers=a4-6", "--start=noise"], ["--mask={}/left.png"], ["--source-latents=kept"],
    ["--source-prompt=a pear"],
], ids=" ".join)
def test_settings_change_the_mixed_images_alone(base, paths, tmp_path, options):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "left.png")
    assert main(arguments(paths, tmp_path / "out", *(option.format(tmp_path) for option in options))) == 0
    for name in ("house-noto in house-ink", "house-ink in house-noto", "house-noto in house-noto",
                 "house-ink in house-ink"):
        source, target = name.split(" in ")
        differs = Image.open(tmp_path / "out" / f"{name}.png").tobytes() != Image.open(base / f"{name}.png").tobytes()
        assert differs == (source != target)


def test_further_sources_and_a_cache_elsewhere(calls, settings, paths, tmp_path):
    option = settings(sources=[{"source": "generate", "source_checkpoint": str(paths["flat"]), "weight": 2,
                                "mask": "mask.png"}])
    command = arguments(paths, tmp_path / "out", option, f"--cache={tmp_path / 'cache'}")
    assert main(command) == 0
    assert (calls["generate"], calls["invert"]) == (1, 3)
    assert len(list((tmp_path / "cache").iterdir())) == 6 and not (tmp_path / "out" / ".latents").exists()
    shutil.rmtree(tmp_path / "out")
    assert main(command) == 0
    assert (calls["generate"], calls["invert"]) == (1, 3)


def test_grids_show_every_image(base):
    grid = Image.open(base / "matrix.png")
    assert grid.width > 2 * 64 and grid.height > 2 * 64
