"""A record of the images and messages of jobs, to show that a change of the code does not change them.

`DITAIL_BEHAVIOUR` is the path of the record, a JSON file with one section for the WebUI and one for the command line. A
section that is not there is recorded and the tests are skipped; else every job is compared with it. Pixels depend on
the CPU, on torch's build and on its number of threads, so a record is only valid on the machine that made it, and is
not committed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

VARIABLE = "DITAIL_BEHAVIOUR"
SIDE = 128
THUMBNAIL = (8, 8)

needs_record = pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} is not set")


class Record:
    """The answers of one section ("webui", "command line") of the record at `DITAIL_BEHAVIOUR`.

    Raises AssertionError if the section was recorded in another environment.
    """

    def __init__(self, section: str):
        self.section, self.path = section, Path(os.environ[VARIABLE])
        # These change the last bits of a sum.
        environment = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
                       "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
        recorded = self._read().get("environment", environment)
        assert recorded == environment, f"{self.path} was recorded with {recorded}, this is {environment}"
        self._environment = environment
        # Decided once, so that comparing never writes: a job that is missing was renamed or is new.
        self.is_recording = not self.jobs

    def _read(self) -> dict:
        if not self.path.exists():
            return {}
        return json.loads(self.path.read_text()).get(self.section, {})

    def _write(self, name: str, answer: dict) -> None:
        record = json.loads(self.path.read_text()) if self.path.exists() else {}
        section = record.setdefault(self.section, {"environment": self._environment, "jobs": {}})
        section["jobs"][name] = answer
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1))
        part.replace(self.path)

    @property
    def jobs(self) -> dict[str, dict]:
        return self._read().get("jobs", {})

    def check(self, name: str, answer: dict) -> None:
        """Record a job's answer and skip the test, or compare it with the recorded one."""
        if self.is_recording:
            self._write(name, answer)
            pytest.skip(f"recorded in {self.path}")
        recorded = self.jobs.get(name)
        assert recorded is not None, f'"{name}" is not in {self.path}'
        differences = list(differences_of(recorded, json.loads(json.dumps(answer))))
        assert not differences, f'"{name}" is not as recorded in {self.path}:\n' + "\n".join(differences)


def differences_of(recorded: dict, answer: dict) -> Iterable[str]:
    """A line for each difference."""
    for key in sorted({*recorded, *answer} - {"images"}):
        if recorded.get(key) != answer.get(key):
            yield f"{key}: recorded {recorded.get(key)!r}, now {answer.get(key)!r}"
    before, now = recorded.get("images", []), answer.get("images", [])
    if len(before) != len(now):
        yield f"images: recorded {len(before)}, now {len(now)}"
    for old, new in zip(before, now, strict=False):
        if (old["name"], old["size"]) != (new["name"], new["size"]):
            yield f"image {old['name']} of {old['size']}: now {new['name']} of {new['size']}"
        elif old["sha256"] != new["sha256"]:
            yield f"image {old['name']}: other pixels; thumbnails differ by {thumbnail_difference(old, new):.2f} " \
                  "grey levels on average"


def thumbnail_difference(a: dict, b: dict) -> float:
    """Mean absolute difference of two recorded thumbnails, in grey levels."""
    pairs = list(zip(bytes.fromhex(a["thumbnail"]), bytes.fromhex(b["thumbnail"]), strict=True))
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


def describe_images(images: Sequence[Image.Image], names: Sequence[str] | None = None) -> list[dict]:
    """Name, size, hash of the RGB bytes and a thumbnail of each image; without names, their numbers."""
    names = names or [str(i) for i in range(len(images))]
    described = []
    for name, image in zip(names, images, strict=True):
        rgb = image.convert("RGB")
        described.append({"name": name, "size": list(rgb.size), "sha256": hashlib.sha256(rgb.tobytes()).hexdigest(),
                          "thumbnail": rgb.resize(THUMBNAIL, Image.Resampling.BOX).tobytes().hex()})
    return described


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def draw_fox(side: int = SIDE) -> Image.Image:
    """A content image: an orange head with ears and eyes on pink."""
    image = Image.new("RGB", (SIDE, SIDE), (250, 190, 205))
    draw = ImageDraw.Draw(image)
    for ear in ([(28, 62), (34, 14), (62, 44)], [(100, 62), (94, 14), (66, 44)]):
        draw.polygon(ear, fill=(205, 95, 30))
    draw.ellipse((24, 36, 104, 112), fill=(240, 130, 45))
    draw.ellipse((42, 78, 86, 112), fill=(255, 245, 235))
    for left in (44, 74):
        draw.ellipse((left, 60, left + 10, 72), fill=(40, 30, 30))
    draw.ellipse((58, 84, 70, 93), fill=(40, 30, 30))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def draw_avocado() -> Image.Image:
    """Another content image: green on blue."""
    image = Image.new("RGB", (SIDE, SIDE), (150, 190, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 14, 98, 118), fill=(60, 110, 50))
    draw.ellipse((38, 22, 90, 110), fill=(205, 225, 130))
    draw.ellipse((48, 58, 80, 92), fill=(120, 75, 40))
    return image


def draw_mask(*box: int) -> Image.Image:
    """A mask, white inside of a box (left, top, right, bottom)."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, box)
    return mask
