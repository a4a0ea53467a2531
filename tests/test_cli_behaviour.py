"""Jobs on the command line whose files, sentences and exit codes are compared with a record (`behaviour_record.py`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.behaviour_record import Record, describe_images, draw_fox, draw_mask, hash_files, needs_record

ROOT = Path(__file__).parents[1]
MIX = ("mix", "--source={models}/house-noto.safetensors", "--target={models}/house-ink.safetensors",
       "--image={inputs}/fox.png", "--out={out}/mixed.png", "--prompt=a fox on pink", "--steps=4", "--cfg=5")
MATRIX = ("matrix", "{models}/house-noto.safetensors", "{models}/house-ink.safetensors", "--out={out}",
          "--prompt=a fox on pink", "--steps=3", "--cfg=5")
# {models}, {inputs} and {out} are folders; a later option of the same name replaces an earlier one.
JOBS = {
    "mix": MIX,
    "mix, DDIM (WebUI)": (*MIX, "--sampler=DDIM (WebUI)"),
    "mix, Euler a": (*MIX, "--sampler=Euler a", "--seed=7"),
    "mix, DPM++ 2M Karras": (*MIX, "--sampler=DPM++ 2M Karras"),
    "mix, UniPC": (*MIX, "--sampler=UniPC"),
    "mix, mask": (*MIX, "--mask={inputs}/right.png"),
    "mix, source prompt": (*MIX, "--source-prompt=a cat", "--source-negative-prompt=blurry",
                           "--negative-prompt=worst quality"),
    "mix, size": (*MIX, "--width=192", "--height=128"),
    "mix, wide image, fill": (*MIX, "--image={inputs}/wide.png", "--width=128", "--height=128", "--resize-mode=fill"),
    "mix, wide image, stretch": (*MIX, "--image={inputs}/wide.png", "--width=128", "--height=128",
                                 "--resize-mode=stretch"),
    "mix, wide image, own size": (*MIX, "--image={inputs}/wide.png"),
    "mix, ratios and weights": (*MIX, "--alpha=1", "--beta=0", "--conv-ratio=1", "--attn-ratio=0.25"),
    "mix, latents saved": (*MIX, "--save-latents={out}/latents.safetensors"),
    "matrix": (*MATRIX, "--seeds=1,2"),
    "matrix, image": (*MATRIX, "--image={inputs}/fox.png", "--seeds=1,2"),
    "matrix, two prompts": (*MATRIX, "--prompt=a pear", "--sampler=Euler a"),
    "error, no such checkpoint": (*MIX, "--source={models}/nowhere.safetensors"),
    "error, no such image": (*MIX, "--image={inputs}/nowhere.png"),
    "error, size": (*MIX, "--width=100"),
    "error, alpha": (*MIX, "--alpha=11"),
    "error, out": (*MIX, "--out={out}/mixed.bmp"),
    "error, matrix of one": ("matrix", "{models}/house-noto.safetensors", "--out={out}", "--prompt=a fox"),
    "error, sampler": (*MIX, "--sampler=magic"),
}

pytestmark = needs_record


@pytest.fixture(scope="module")
def record() -> Record:
    return Record("command line")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The demo checkpoints as `ditail demo` writes them, and the images that the jobs read."""
    folder = tmp_path_factory.mktemp("behaviour")
    models, inputs = folder / "models" / "Stable-diffusion", folder / "inputs"
    models.mkdir(parents=True)
    inputs.mkdir()
    assert ditail("demo", f"--webui={folder}").returncode == 0
    draw_fox().save(inputs / "fox.png")
    draw_fox().resize((256, 150)).save(inputs / "wide.png")
    draw_mask(64, 0, 128, 128).save(inputs / "right.png")
    return {"models": models, "inputs": inputs}


def ditail(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, "-m", "ditail", *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=600, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"})


def test_model_files(record, folders):
    """Other images than recorded say nothing of the code if the checkpoints are others, too."""
    record.check("model files", {"files": hash_files(folders["models"].glob("*.safetensors"))})


@pytest.mark.parametrize("name", JOBS)
def test_job(record, folders, tmp_path, name):
    places = {**folders, "out": tmp_path}
    done = ditail(*(argument.format(**places) for argument in JOBS[name]))
    assert "Traceback" not in done.stderr, done.stderr
    error = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    for key, place in places.items():
        error = error.replace(str(place), f"{{{key}}}")
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    names = [str(path.relative_to(tmp_path)) for path in files]
    images = [(name, Image.open(path)) for name, path in zip(names, files, strict=True) if path.suffix == ".png"]
    record.check(name, {
        "exit code": done.returncode, "error": error, "files": names,
        "images": describe_images([image for _, image in images], [name for name, _ in images]),
    })


def test_every_recorded_job_is_among_these(record):
    assert set(record.jobs) <= {*JOBS, "model files"}
