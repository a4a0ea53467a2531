"""Jobs for the fault and interrupt suites, and the injector of the probe extension as the tests see it."""

import http.client
import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.error import URLError

SIZE = 64
STEPS = 3
SEED = int(os.environ.get("DITAIL_SEED", "1"))
VAE = "test.vae.safetensors"
LORA = "a fox on pink <lora:test-lora:{}>"
NOTO, FLAT = "house-noto", "house-flat"


@dataclass(frozen=True)
class Kind:
    """A kind of job: `settings` of Ditail (None: without it), and what the request has besides.

    plain_jobs: the number of jobs without Ditail that use up the same random numbers.
    """

    settings: dict | None
    overrides: dict
    plain_jobs: int = 1
    prepare: Callable | None = None


def kinds(image: str, other_image: str) -> dict[str, Kind]:
    """Every kind of run with Ditail, by "tab name"."""
    source = {"image": image, "source_checkpoint": NOTO}
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7,
             "hr_second_pass_steps": 2}
    every = {
        "inverted": (source, {}),
        "own VAE": ({**source, "source_vae": VAE}, {}),
        "LoRAs": ({**source, "source_prompt": LORA.format(0.5)}, {"prompt": LORA.format(1)}),
        "generated": ({"source": "generate", "source_checkpoint": NOTO}, {}),
        "mix": ({**source, "sources": [{"image": other_image, "source_checkpoint": FLAT}]}, {}),
        "hires": (source, hires),
        "generated hires": ({"source": "generate", "source_checkpoint": NOTO}, hires),
        "matrix": (None, {"script_name": "Ditail matrix", "script_args": [{"checkpoints": [NOTO, "house-ink"]}]}),
        "X/Y/Z": (source, {"plot": ("[Ditail] Alpha", "2.5, 3.5")}),
    }
    jobs = {f"txt2img {name}": Kind(settings, overrides, plain_jobs=4 if name == "matrix" else 1)
            for name, (settings, overrides) in every.items()}
    own = {"tab": "img2img", "init_images": [image], "denoising_strength": 0.75}
    for name, (settings, overrides) in every.items():
        if "hires" not in name:
            settings = {k: v for k, v in settings.items() if k != "image"} if settings else settings
            jobs[f"img2img {name}"] = Kind(settings, {**overrides, **own}, jobs[f"txt2img {name}"].plain_jobs)
    return jobs


class Faulty:
    """A WebUI whose functions can be made to fail."""

    def __init__(self, webui):
        self.webui = webui

    def post(self, route: str, body: dict | None = None):
        answer = self.webui.call(f"/ditail-test/faults/{route}", body or {})
        assert answer.status == 200, answer.json
        return answer.json

    def fingerprint(self) -> dict:
        return self.webui.call("/ditail-test/faults/fingerprint").json

    def memory(self) -> dict:
        return self.webui.call("/ditail-test/faults/memory").json

    def points(self) -> dict:
        return self.webui.call("/ditail-test/faults/points").json

    @contextmanager
    def armed(self, **fault):
        """A block with a fault at work; gives a dict that holds afterwards what the injector saw."""
        seen = {}
        self.post("arm", fault)
        try:
            yield seen
        finally:
            with suppress(URLError, ConnectionError, http.client.HTTPException):  # the fault may have ended the WebUI
                seen.update(self.post("disarm"))

    def ask(self, kind: Kind, *, plain: bool = False):
        """One job; without Ditail if it is to be `plain`. An answer of status 0: the connection was closed instead."""
        body = {"save_images": True, "steps": STEPS, "width": SIZE, "height": SIZE, "override_settings": {},
                "override_settings_restore_afterwards": True, **kind.overrides}
        try:
            if "plot" in body:
                axis = body.pop("plot")
                axis = ("CFG Scale", "5, 5") if plain else axis
                return self.webui.plot(None if plain else kind.settings, axis, **body)
            if plain:
                body = {k: v for k, v in body.items() if not k.startswith("script_")}
                return self.webui.generate(**body)
            return self.webui.generate(kind.settings, **body)
        except (http.client.HTTPException, ConnectionError, URLError) as error:
            return SimpleNamespace(status=0, json={"detail": str(error)}, error=str(error), images=[])

    def image(self, kind: Kind, *, plain: bool = False) -> bytes:
        """All images of a job that begins with known random generators."""
        self.post("rewind")
        answer = self.ask(kind, plain=plain)
        if answer.status != 200:
            return str(answer.json).encode()
        return b"".join(image.tobytes() for image in answer.images)


def differences(before: dict, after: dict, but: set[str] = frozenset()) -> dict:
    """The topics of a fingerprint that have changed, with both values."""
    changed = {}
    for topic in before:
        if topic not in but and before[topic] != after[topic]:
            was, now = before[topic], after[topic]
            if isinstance(was, dict) and isinstance(now, dict):
                keys = [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)]
                was, now = ({key: side.get(key) for key in keys} for side in (was, now))
            changed[topic] = [shortened(was), shortened(now)]
    return changed


def shortened(value):
    text = str(value)
    return value if len(text) < 400 else text[:400] + "..."
