"""A real WebUI for the tests: `SD_WEBUI_DIR` is its folder, `SD_WEBUI_PYTHON` its interpreter.

It is started on a scratch data folder with this extension linked in and the house checkpoints copied there.
"""

import base64
import io
import json
import os
import shutil
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

import pytest
from PIL import Image
from webui_helpers import SIDE, encode

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ASSETS = ROOT / "ditail" / "standalone" / "assets"
FLAGS = [
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--use-cpu", "all", "--api", "--api-server-stop",
    "--no-download-sd-model", "--do-not-download-clip", "--skip-version-check",
]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "MPLBACKEND": "Agg"}
START_SECONDS = 300


def pytest_collection_modifyitems(items):
    if "SD_WEBUI_DIR" not in os.environ:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="SD_WEBUI_DIR is not set"))


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
        """One job of the API: the house's ink model, 8 DDIM steps, unless `overrides` says otherwise."""
        body = {
            "prompt": "a fox on pink", "seed": 1, "steps": 8, "width": SIDE, "height": SIDE, "cfg_scale": 5,
            "sampler_name": "DDIM", "scheduler": "Automatic",
            "override_settings": {"sd_model_checkpoint": "house-ink"}, "override_settings_restore_afterwards": False,
            **overrides,
        }
        if ditail is not None:
            body["alwayson_scripts"] = {"Ditail": {"args": [{"enabled": True, **ditail}]}}
        return self.call(f"/sdapi/v1/{tab}", body)

    def state(self) -> dict:
        return self.call("/ditail-test/state").json

    def checkpoint_loads(self) -> int:
        return self.log.read_text(errors="replace").count("Loading weights [")

    def loads_and_inversions(self) -> tuple[int, int]:
        """How often the log says that a checkpoint was loaded, and that a content image was inverted."""
        text = self.log.read_text(errors="replace")
        return text.count("Loading weights ["), text.count("Ditail: inverted ")

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


@pytest.fixture(scope="session")
def webui(tmp_path_factory):
    data = prepare(tmp_path_factory.mktemp("webui-data"))
    with running(data, "--no-half") as ui:
        yield ui


def prepare(data: Path) -> Path:
    """A data folder for a WebUI with the house checkpoints, this extension and the tests' own."""
    models = data / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    (data / "models" / "Lora").mkdir()
    subprocess.run([sys.executable, "-m", "ditail", "demo", "--webui", str(data)], check=True, cwd=ROOT)
    write_other_checkpoints(models)
    write_lora(data / "models" / "Lora" / "test-lora.safetensors", models / "house-noto.safetensors")
    write_vae(data / "models" / "VAE" / "test.vae.safetensors", models / "house-noto.safetensors")
    (data / "extensions").mkdir()
    (data / "extensions" / "ditail").symlink_to(ROOT)
    shutil.copytree(HERE / "probe_extension", data / "extensions" / "ditail-test-probe")
    if controlnet := os.environ.get("SD_WEBUI_CONTROLNET_DIR"):
        (data / "extensions" / "sd-webui-controlnet").symlink_to(controlnet)
    (data / "config.json").write_text(json.dumps({"show_progress_type": "Approx cheap", "samples_save": False,
                                                  "sd_model_checkpoint": "house-ink.safetensors"}))
    return data


@contextmanager
def running(data: Path, *flags: str, **environment: str) -> Iterator[WebUI]:
    """A WebUI on a prepared data folder, with further flags and environment variables, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = data / "webui.log"
    python = os.environ.get("SD_WEBUI_PYTHON", sys.executable)
    command = [python, "launch.py", *FLAGS, *flags, "--data-dir", str(data), "--port", str(port)]
    env = {**os.environ, **OFFLINE, **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=os.environ["SD_WEBUI_DIR"], env=env, stdout=out,
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


@pytest.fixture
def options(webui):
    """Set options of the WebUI as its settings page does; they are set back after the test."""
    # The API's own list lacks extensions' options where another extension (ControlNet) imports the API before theirs.
    before = webui.call("/ditail-test/options").json
    changed = set()

    def choose(**values) -> None:
        changed.update(values)
        assert webui.call("/sdapi/v1/options", values).status == 200

    yield choose
    choose(**{name: before[name] for name in changed})


@pytest.fixture(scope="session")
def families(webui) -> None:
    """Checkpoints of every topology among the WebUI's own: `families.py` says which."""
    write_families(webui.data)
    webui.call("/sdapi/v1/refresh-checkpoints", {})


def write_families(data: Path) -> None:
    python = os.environ.get("SD_WEBUI_PYTHON", sys.executable)
    subprocess.run([python, HERE / "families.py", data / "models" / "Stable-diffusion"], check=True,
                   cwd=os.environ["SD_WEBUI_DIR"], capture_output=True)


def write_other_checkpoints(models: Path) -> None:
    """A checkpoint with the shapes of another architecture, and a file that is none."""
    import torch
    from safetensors.torch import save_file

    unet = "model.diffusion_model."
    save_file({
        f"{unet}input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3),
        f"{unet}output_blocks.8.0.in_layers.0.weight": torch.zeros(8),
        f"{unet}middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 2048),
    }, models / "other-architecture.safetensors", metadata={"format": "pt"})
    (models / "broken.safetensors").write_bytes(b"no checkpoint at all" * 1000)


def write_lora(path: Path, checkpoint: Path) -> None:
    """A LoRA that changes one projection of the house's U-Net."""
    import torch
    from safetensors.torch import load_file, save_file

    weight = load_file(checkpoint)["model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn1.to_v.weight"]
    torch.manual_seed(0)
    name = "lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_v"
    save_file({
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2) * 2,
        f"{name}.lora_down.weight": torch.randn(2, weight.shape[1]), f"{name}.alpha": torch.tensor(2.0),
    }, path)


def write_vae(path: Path, checkpoint: Path) -> None:
    """A VAE that is nearly that of a checkpoint."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    prefix = "first_stage_model."
    weights = {name.removeprefix(prefix): weight * (1 + 0.02 * torch.randn_like(weight))
               for name, weight in load_file(checkpoint).items() if name.startswith(prefix)}
    path.parent.mkdir(exist_ok=True)
    save_file(weights, path)


@pytest.fixture(scope="session")
def content() -> Image.Image:
    """The first of the house's held-out images in the colourful style: a fox on pink."""
    return Image.open(ASSETS / "held_out_noto.png").convert("RGB").crop((0, 0, SIDE, SIDE))


@pytest.fixture(scope="session")
def other_content() -> Image.Image:
    """The second one: an avocado."""
    return Image.open(ASSETS / "held_out_noto.png").convert("RGB").crop((SIDE, 0, 2 * SIDE, SIDE))


@pytest.fixture(scope="session")
def base64_content(content) -> str:
    return encode(content)


@pytest.fixture
def ditail(base64_content) -> dict:
    """Settings for the usual job: the content image, inverted with the house's noto model."""
    return {"image": base64_content, "source_checkpoint": "house-noto"}
