"""The command line as real processes: interrupts at any moment, full disks, read-only folders, killed workers."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ditail.standalone import demo, demo_checkpoints
from ditail.standalone.cli import main
from lab import evaluate
from lab.cli import main as lab_main
from tests.processes import Marked

# How many random moments: DITAIL_INTERRUPTS=60 is a soak.
RANDOM_MOMENTS = int(os.environ.get("DITAIL_INTERRUPTS", 4))
INTERRUPTED = ["ditail: interrupted"]
# `python -m ditail`, with a function that is called before.
PATCHED = "from ditail.standalone.process import run\n{}\nrun('ditail', 'ditail.standalone.cli')"
ENDLESS_SAVE = """
import time
from PIL import Image
def save(image, path, *args, **kwargs):
    path.write_bytes(b"half an image")
    time.sleep(600)
Image.Image.save = save
"""
INTERRUPT_IN_A_DESTRUCTOR = """
import os, signal
from ditail.standalone import mix as module
class Trap:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
def mix(args):
    Trap()
    for _ in range(10**9): pass
module.command = mix
"""
# As in a library: an object whose destructor needs what its interrupted __init__ did not set, and a thread.
INTERRUPT_HALF_WAY = """
import os, signal, threading
from ditail.standalone import mix as module
class Half:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**9): pass
        self.open = True
    def __del__(self):
        assert self.open
def mix(args):
    try:
        Half()
    finally:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
module.command = mix
"""
TRY_TWICE = "from ditail.standalone import fanout\nfanout.TRIES = 2"
INTERRUPT_AS_ANOTHER_ERROR = """
import os, signal
from ditail.standalone import mix as module
def mix(args):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**9): pass
    except KeyboardInterrupt as error:
        raise ImportError("a library's own words") from error
module.command = mix
"""


@pytest.fixture
def folder(tmp_path):
    """For the files of a command; its content image is elsewhere."""
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def mix(paths, tmp_path, folder):
    """The arguments of a `mix` into the folder, of more steps than anybody waits for."""
    content = tmp_path / "content.png"
    demo_checkpoints.held_out().images["noto"][0].save(content)
    return ["mix", f"--source={paths['noto']}", f"--target={paths['ink']}", f"--image={content}", "--prompt=a fox",
            f"--out={folder / 'out.png'}", f"--save-latents={folder / 'z.safetensors'}", "--steps=900"]


@pytest.fixture
def matrix(paths, folder):
    return ["matrix", str(paths["noto"]), str(paths["ink"]), "--prompt=a fox", f"--out={folder}", "--steps=2"]


def python(arguments, tmp_path, *code, **options):
    """`python -m ditail`, or a patched one."""
    start = ["-c", PATCHED.format(*code)] if code else ["-m", "ditail"]
    return Marked([sys.executable, *start, *arguments], tmp_path, **options)


MOMENTS = {
    "as soon as signals are handled": lambda process: process.catches(signal.SIGTERM),
    "torch starts to load": lambda process: process.maps("libtorch"),
    "torch is loading": lambda process: process.maps("libtorch_python"),
    "inverting": lambda process: "inverting the content image:   1%" in process.err.read_text(),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_ends_mix_with_one_line_and_leaves_no_file(mix, tmp_path, folder, moment):
    process = python(mix, tmp_path)
    process.wait_until(lambda: MOMENTS[moment](process))
    process.interrupt()
    assert process.end() == (130, INTERRUPTED)
    assert not list(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(RANDOM_MOMENTS))
def test_two_interrupts_at_a_random_moment(request, mix, matrix, tmp_path, folder, number):
    """Whatever is being imported, loaded or computed then; every fourth time with Ray."""
    rng, with_ray = random.Random(number), number % 4 == 3
    request.getfixturevalue("ray" if with_ray else "paths")
    process = python([*matrix, "--steps=900", "--workers=2"] if with_ray else mix, tmp_path)
    process.wait_until(lambda: process.catches(signal.SIGTERM))
    time.sleep(rng.uniform(0, 15 if with_ray else 6))
    process.interrupt()
    time.sleep(rng.uniform(0, 0.1))
    process.interrupt()
    assert process.end() == (130, INTERRUPTED)
    assert not [p for p in folder.rglob("*") if p.is_file()]


def test_an_interrupt_before_the_first_import(tmp_path):
    """Nothing heavy is imported before signals are handled, so that there is hardly a moment before."""
    code = "import sys, ditail.standalone.process\nprint(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "PIL", "argparse", "dataclasses", "ditail.errors"} & set(modules)


@pytest.mark.slow
def test_an_interrupt_while_the_image_is_written(mix, tmp_path, folder):
    process = python([*mix, "--steps=1"], tmp_path, ENDLESS_SAVE)
    process.wait_until(lambda: (folder / "out.png.part").exists())
    process.interrupt()
    assert process.end() == (130, INTERRUPTED)
    assert [p.name for p in folder.iterdir()] == ["z.safetensors"]


@pytest.mark.slow
def test_a_termination_is_told_like_an_interrupt(mix, tmp_path, folder):
    process = python([*mix, "--steps=1"], tmp_path, ENDLESS_SAVE)
    process.wait_until(lambda: (folder / "out.png.part").exists())
    process.popen.terminate()
    assert process.end() == (128 + signal.SIGTERM, INTERRUPTED)
    assert [p.name for p in folder.iterdir()] == ["z.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("code", [INTERRUPT_IN_A_DESTRUCTOR, INTERRUPT_AS_ANOTHER_ERROR])
def test_an_interrupt_that_others_catch_still_ends_it(mix, tmp_path, code):
    assert python(mix, tmp_path, code).end() == (130, INTERRUPTED)


@pytest.mark.slow
def test_what_fails_because_of_an_interrupt_is_not_told(mix, tmp_path):
    process = python(mix, tmp_path, INTERRUPT_HALF_WAY)
    assert process.end() == (130, INTERRUPTED)
    assert process.err.read_text() == "ditail: interrupted\n"


@pytest.mark.slow
def test_an_interrupt_while_the_demo_checkpoints_are_merged(tmp_path, folder):
    process = python(["demo", f"--out={folder}"], tmp_path, DITAIL_CACHE=str(tmp_path / "cache"))
    process.wait_until(lambda: list(tmp_path.glob("cache/*/house/*.safetensors")))
    process.interrupt()
    assert process.end() == (130, INTERRUPTED)
    assert not list(folder.iterdir()) and not list((tmp_path / "cache").iterdir())


def tasks(process):
    return [pid for pid, command in process.family().items() if command.startswith("ray::_run_on_ray")]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["Ray starts", "tasks run"])
def test_an_interrupt_with_workers_leaves_no_process(ray, matrix, tmp_path, folder, moment):
    process = python([*matrix, "--steps=900", "--workers=2"], tmp_path)
    process.wait_until(lambda: tasks(process) if moment == "tasks run" else len(process.family()) > 1)
    process.interrupt()
    assert process.end() == (130, INTERRUPTED)
    assert not [p for p in folder.rglob("*") if p.is_file()]


@pytest.mark.slow
def test_workers_that_are_killed_are_named_and_the_next_run_makes_the_rest(ray, matrix, tmp_path, folder):
    process = python([*matrix, "--steps=900", "--workers=2"], tmp_path, TRY_TWICE)
    killed = set()

    def kill():
        for pid in set(tasks(process)) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        return process.popen.poll() is not None

    process.wait_until(kill, ended=True)
    code, (line,) = process.end()
    assert code == 1 and len(killed) >= 4
    assert line.startswith("ditail: failed: source house-") and "its worker process was killed" in line
    assert python(matrix, tmp_path).end()[0] == 0
    assert len(list(folder.glob("*.png"))) == 5


@pytest.mark.slow
def test_a_path_that_stdout_cannot_encode_is_printed_with_escapes(mix, tmp_path, folder):
    arguments = [a for a in mix if not a.startswith(("--out", "--save", "--steps"))]
    process = subprocess.run([sys.executable, "-m", "ditail", *arguments, "--steps=1", f"--out={folder / 'é.png'}"],
                             env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
                             cwd=Path(__file__).parents[1])
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert process.stdout.startswith(f"{folder}/\\xe9.png (") and (folder / "é.png").is_file()


@pytest.fixture(params=["full", "read-only", "below a file"])
def unwritable(request, tmp_path):
    """(a folder that can't be written to, the system's words)."""
    kind, place = request.param, tmp_path / "unwritable"
    if kind == "below a file":
        place.write_text("")
        yield place / "folder", "Not a directory"
        return
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size=4k{',ro' * (kind == 'read-only')} none {place} 2> /dev/null"):
        pytest.skip("a file system can't be mounted here (needs root)")
    yield place, {"full": "No space left on device", "read-only": "can't be written to"}[kind]
    os.system(f"umount {place}")


def assert_one_sentence(capfd, *words, program="ditail"):
    lines = capfd.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert [line for line in lines if line.startswith(f"{program}: ")] == lines[-1:]
    assert [word for word in words if str(word) not in lines[-1]] == [], lines[-1]


@pytest.mark.parametrize("command", ["mix", "matrix", "demo"])
def test_what_cannot_be_written_is_one_sentence(request, monkeypatch, unwritable, capfd, command):
    place, words = unwritable
    monkeypatch.setattr(demo, "DEMO", demo.DEMO.with_(steps=2))
    monkeypatch.setattr(demo, "DEMO_PRESETS", ("Paper",))
    arguments = request.getfixturevalue(command) if command != "demo" else ["demo"]
    arguments = [a for a in arguments if not a.startswith(("--save", "--out", "--steps"))]
    arguments += ["--steps=1"] * (command != "demo")
    assert main([*arguments, f"--out={place / 'out.png' if command == 'mix' else place}"]) == 2
    assert_one_sentence(capfd, words, place)
    assert not (list(place.rglob("*.part")) if place.is_dir() else [])


def test_an_evaluation_that_cannot_be_written_is_one_sentence(monkeypatch, unwritable, capfd):
    place, words = unwritable
    monkeypatch.setattr(evaluate, "run_units", lambda *_: iter([[{"row": "r" * 5000, "source": "a", "target": "b"}]]))
    assert lab_main(["evaluate", f"--out={place}"]) == 2
    assert_one_sentence(capfd, words, place, program="lab")


def test_a_cache_that_cannot_be_written_is_one_sentence(monkeypatch, unwritable, folder, capfd):
    place, _ = unwritable
    monkeypatch.setenv("DITAIL_CACHE", str(place / "cache"))
    assert main(["demo", f"--out={folder}"]) == 2
    assert_one_sentence(capfd, "the demo checkpoints can't be kept in", place, "DITAIL_CACHE")
    assert not [p for p in place.parent.rglob("*") if p.is_file() and p.name != place.name]


def test_a_webui_folder_that_cannot_be_written_is_one_sentence(unwritable, capfd):
    place, _ = unwritable
    models = place / "models" / "Stable-diffusion"
    with suppress(OSError):
        models.mkdir(parents=True)
    assert main(["demo", f"--webui={place}"]) == 2
    assert_one_sentence(capfd, place)


@pytest.mark.parametrize("program", ["ditail", "lab"])
def test_help_tells_no_more_than_there_is(program):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", program, *arguments, "--help"], capture_output=True, text=True,
                              check=True, cwd=Path(__file__).parents[1]).stdout

    commands = {"ditail": ["demo", "mix", "matrix"], "lab": ["evaluate", "bench", "train"]}[program]
    assert all(f"    {command} " in run() for command in commands)
    told = "".join(run(command) for command in commands)
    assert "--out" in told and "LoRA" not in told and "house" not in told


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2)])
def test_the_measurement_of_the_safe_region_starts_with_a_file_only(arguments, code, tmp_path, monkeypatch, capsys):
    from lab import safe_region

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(safe_region, "complete_records", lambda path: pytest.fail(f"measures into {path}"))
    with pytest.raises(SystemExit) as ended:
        safe_region.main(arguments)
    assert ended.value.code == code and "OUT.jsonl" in "".join(capsys.readouterr())
