"""A WebUI in a process of its own, and requests to it.

`SD_WEBUI_DIR` is its folder, `SD_WEBUI_PYTHON` its interpreter; `SD_FORGE_DIR` and `SD_FORGE_PYTHON` make it a Forge.
"""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.webui.webui_helpers import SIDE

IS_FORGE = "SD_FORGE_DIR" in os.environ
FOLDER = os.environ.get("SD_FORGE_DIR") or os.environ.get("SD_WEBUI_DIR")
PYTHON = os.environ.get("SD_FORGE_PYTHON" if IS_FORGE else "SD_WEBUI_PYTHON", sys.executable)
# Beside a data folder of its own, Forge does not serve its own scripts unless it is told to.
OWN_FLAGS = ["--always-cpu", "--skip-python-version-check", "--no-hashing", "--gradio-allowed-path", str(FOLDER)] \
    if IS_FORGE else ["--use-cpu", "all"]
FLAGS = [
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--api", "--api-server-stop", "--no-download-sd-model",
    "--do-not-download-clip", "--skip-version-check",
    *OWN_FLAGS,
]
NO_HALF = () if IS_FORGE else ("--no-half",)  # Forge computes in float32 on a CPU anyway
LOADS = "StateDict Keys: {" if IS_FORGE else "Loading weights ["
# What a source of another checkpoint loads besides it: Forge keeps the target in memory.
LOADS_TO_GO_BACK = 0 if IS_FORGE else 1
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "MPLBACKEND": "Agg",
           **({"CUDA_VISIBLE_DEVICES": "", "SD_WEBUI_RESTARTING": "1"} if IS_FORGE else {})}
START_SECONDS = 600  # on a busy machine


@dataclass
class Answer:
    """What the API said: `error` is the sentence of a refusal."""

    status: int
    json: dict

    @property
    def error(self) -> str:
        return str(self.json.get("detail", ""))

    @property
    def images(self) -> list[Image.Image]:
        assert self.status == 200, self.json
        return [Image.open(io.BytesIO(base64.b64decode(i))).convert("RGB") for i in self.json["images"]]

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @property
    def infotexts(self) -> list[str]:
        return json.loads(self.json["info"])["infotexts"]

    @property
    def infotext(self) -> str:
        return self.infotexts[0]


class WebUI:
    """A running WebUI and the few calls that the tests make."""

    def __init__(self, url: str, data: Path, log: Path):
        self.url, self.data, self.log = url, data, log

    def call(self, path: str, body: dict | None = None, timeout: int = 300) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            # What is no Exception (an InterruptedException, say) the server answers in plain text.
            return Answer(error.code, json.loads(text) if text.startswith("{") else {"errors": text})

    def generate(self, ditail: dict | None = None, tab: str = "txt2img", **overrides) -> Answer:
        """One job of the API: the demo checkpoint ink, 8 DDIM steps, unless `overrides` says otherwise."""
        body = {
            "prompt": "a fox on pink", "seed": 1, "steps": 8, "width": SIDE, "height": SIDE, "cfg_scale": 5,
            "sampler_name": "DDIM", "scheduler": "Automatic",
            "override_settings": {"sd_model_checkpoint": "house-ink"}, "override_settings_restore_afterwards": False,
            **overrides,
        }
        if IS_FORGE and body.get("enable_hr"):
            body.setdefault("hr_additional_modules", ["Use same choices"])  # without it, Forge's API answers 500
        if ditail is not None:
            body["alwayson_scripts"] = {"Ditail": {"args": [{"enabled": True, **ditail}]}}
        return self.call(f"/sdapi/v1/{tab}", body)

    def state(self) -> dict:
        return self.call("/ditail-test/state").json

    def checkpoint_loads(self) -> int:
        return self.log.read_text(errors="replace").count(LOADS)

    def loads_and_inversions(self) -> tuple[int, int]:
        """How often the log says that a checkpoint was loaded, and that a content image was inverted."""
        text = self.log.read_text(errors="replace")
        return text.count(LOADS), text.count("Ditail: inverted ")

    def plot_axis(self, label: str) -> int:
        """The number of an axis of the X/Y/Z plot."""
        plot = next(s for s in self.call("/sdapi/v1/script-info").json if s["name"] == "x/y/z plot")
        return plot["args"][0]["choices"].index(label)

    def plot(self, ditail: dict, x: tuple[str, object], y: tuple[str, object] = ("Nothing", ""), **overrides) -> Answer:
        """An X/Y/Z plot; values are a text, or a list where the axis has choices."""
        args = []
        for label, values in (x, y, ("Nothing", "")):
            args += [self.plot_axis(label), *(("", values) if isinstance(values, list) else (values, []))]
        args += [False, True, False, True, False, False, False, 0, False]
        return self.generate(ditail, script_name="x/y/z plot", script_args=args, **overrides)

    def wait_for_start(self, process: subprocess.Popen, times: int = 1) -> None:
        # Its port answers before it is ready, and a request in between can break the start.
        deadline = time.monotonic() + START_SECONDS
        while self.log.read_text(errors="replace").count("Startup time:") < times:
            assert process.poll() is None and time.monotonic() < deadline, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.3)


@contextmanager
def running(data: Path, *flags: str, **environment: str) -> Iterator[WebUI]:
    """A WebUI on a prepared data folder, with further flags and environment variables, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = data / "webui.log"
    command = [PYTHON, "launch.py", *FLAGS, *flags, "--data-dir", str(data), "--port", str(port)]
    env = {**os.environ, **OFFLINE, **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=FOLDER, env=env, stdout=out,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    ui = WebUI(f"http://127.0.0.1:{port}", data, log)
    ui.process = process
    try:
        ui.wait_for_start(process)
        ui.generate(steps=1)  # the first request loads the model
        yield ui
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
