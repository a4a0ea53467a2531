"""Jobs in the real WebUI whose answers are compared with a record (`behaviour_record.py`).

Run alone, with the same OMP_NUM_THREADS that the record was made with.
"""

import os
import re

import pytest
from safetensors.torch import load_file, save_file

from tests.behaviour_record import Record, describe_images, hash_files, needs_record
from tests.webui.behaviour_jobs import ERRORS, JOBS, OTHER_VAE, USUAL_OPTIONS

MODEL_FILES = "model files"
# An entry of an infotext's last line: `key: value` or `key: "value, quoted"`.
ENTRY = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')

pytestmark = needs_record


@pytest.fixture(scope="module")
def record() -> Record:
    return Record("webui")


@pytest.fixture(scope="module")
def prepared(webui, families):
    """The WebUI with models of every family, and a VAE that isn't the checkpoints' own."""
    models = webui.data / "models"
    prefix = "first_stage_model."
    checkpoint = load_file(models / "Stable-diffusion" / "house-noto.safetensors")
    vae = {k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)}
    vae["encoder.conv_out.weight"] = vae["encoder.conv_out.weight"] * 1.3
    (models / "VAE").mkdir(exist_ok=True)
    save_file(vae, models / "VAE" / OTHER_VAE)
    webui.call("/sdapi/v1/refresh-vae", {})
    return webui


def send(webui, job):
    """The answer to a job."""
    assert set(job.options) <= set(USUAL_OPTIONS)
    options = {"sd_model_checkpoint": job.target, **USUAL_OPTIONS, **job.options}
    asked = {"steps": 5, **job.asked, "override_settings": options}
    if job.plot:
        return webui.plot(job.ditail, *job.plot, tab=job.tab, **asked)
    if job.matrix is not None:
        asked |= {"script_name": "Ditail matrix", "script_args": [job.matrix]}
    return webui.generate(job.ditail, job.tab, **asked)


def describe(webui, answer) -> dict:
    """What is recorded of an answer; folders, which differ from run to run, are named instead."""
    if answer.status != 200:
        error = answer.error.replace(str(webui.data), "{data}").replace(os.environ["SD_WEBUI_DIR"], "{webui}")
        return {"status": answer.status, "error": error}
    entries = [[f"{key}: {value}" for key, value in ENTRY.findall(text.splitlines()[-1]) if key.startswith("Ditail")]
               for text in answer.infotexts]
    return {"status": 200, "infotext": entries, "images": describe_images(answer.images)}


def test_model_files(record, prepared):
    """Other images than recorded say nothing of the code if the models are others, too."""
    files = hash_files((prepared.data / "models").rglob("*.safetensors"))
    assert {"house-ink.safetensors", "sdxl-v-a.safetensors", OTHER_VAE, "test-lora.safetensors"} <= set(files)
    record.check(MODEL_FILES, {"files": files})


@pytest.mark.parametrize("name", JOBS)
def test_job(record, prepared, name):
    assert prepared.call("/ditail-test/start-afresh", {"checkpoint": JOBS[name].target}).status == 200
    answers = [describe(prepared, send(prepared, JOBS[name])) for _ in range(JOBS[name].times)]
    expected = 422 if name in ERRORS else 200
    assert [answer["status"] for answer in answers] == [expected] * len(answers), answers
    for key in ("infotext", "images"):
        answers[0][key] = [entry for answer in answers for entry in answer.get(key, [])]
    record.check(name, answers[0])


def test_every_recorded_job_is_among_these(record):
    assert set(record.jobs) <= {*JOBS, MODEL_FILES}
