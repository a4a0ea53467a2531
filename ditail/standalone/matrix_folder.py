"""The folder of a matrix: where each image belongs, and whether what is there was made with the same settings."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..content.settings import DitailSettings
from ..errors import DitailError
from ..job.plan import image_hash
from .files import make_folder, save_image, whole_file
from .sampling import Job

SLUG = 40
# Images of a matrix of another format differ from those that are made now.
FORMAT = 2
# The folder of the source latents, beside the images.
LATENTS = ".latents"
# Settings that are no part of an image's metadata: its cell says the source, and a preset is its values.
NOT_MARKED = ("enabled", "preset", "source_checkpoint", "source_vae", "hires", "show_source")


class Cell(NamedTuple):
    """One image: content of `source`, style of `target`; where they are the same, plain generation."""

    source: Path
    target: Path
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.source.stem} in {self.target.stem}.png"

    @property
    def is_plain(self) -> bool:
        return self.source == self.target


@dataclass(frozen=True)
class Matrix:
    """What is to be made into the folder `out`.

    job: the sampling, as yet of no prompt. size: (width, height) in pixels.
    values: Ditail's settings by key but for `source_checkpoint`; without a content image, each checkpoint generates its
    own content.
    """

    out: Path
    checkpoints: Sequence[Path]
    prompts: Sequence[str]
    seeds: Sequence[int]
    job: Job
    size: tuple[int, int]
    values: Mapping

    def cells(self) -> Iterator[Cell]:
        """Ordered by target, then by prompt."""
        for target in self.checkpoints:
            for prompt in self.prompts:
                for source in self.checkpoints:
                    yield from (Cell(source, target, prompt, seed) for seed in self.seeds)

    @cached_property
    def marks(self) -> dict:
        """What every image depends on, whatever its cell, as JSON gives it back."""
        images = {key: self.values[key] for key in ("image", "mask") if key in self.values}
        plain = {key: value for key, value in self.values.items() if key not in images}
        settings = {**asdict(DitailSettings.from_dict(plain)), **images}
        job = self.job
        known = {"matrix": FORMAT, "size": self.size, "steps": job.steps, "sampler": job.sampler, "omega": job.omega,
                 "negative_prompt": job.negative_prompt,
                 **{key: _described(value) for key, value in settings.items() if key not in NOT_MARKED}}
        return json.loads(json.dumps(known))

    @cached_property
    def files(self) -> dict[Path, list]:
        """Each checkpoint's name, size and time of change, and its yaml's hash: what says that it is another one."""
        yamls = {p: hashlib.sha256(p.with_suffix(".yaml").read_bytes()).hexdigest()[:16] for p in self.checkpoints}
        return {p: [p.stem, p.stat().st_size, p.stat().st_mtime_ns, yamls[p]] for p in self.checkpoints}

    def marks_of(self, cell: Cell) -> dict:
        """What the image depends on."""
        return {**self.marks, "prompt": cell.prompt, "seed": cell.seed, "source": self.files[cell.source],
                "target": self.files[cell.target]}

    def places(self, name: str, prompt: str, seed: int) -> list[Path]:
        """Where a file belongs, and where it would belong if more or fewer prompts and seeds were asked for.

        That is in `out` itself for one prompt and seed, else in folders of their names.
        """
        places = [self.out / folder_name(prompt) / f"seed {seed}" / name, self.out / name]
        return places[::-1] if len(self.prompts) == len(self.seeds) == 1 else places

    def image_place(self, cell: Cell) -> Path:
        return self.places(cell.name, cell.prompt, cell.seed)[0]

    def has_image(self, cell: Cell) -> bool:
        """Whether it is in its place; from the other one it is copied. Raises DitailError for one that is stale."""
        marks, (path, other) = self.marks_of(cell), self.places(cell.name, cell.prompt, cell.seed)
        known = read_png_marks(path)
        if known is None and is_made_with(read_png_marks(other), marks):
            make_folder(path.parent, "--out")
            with whole_file(path) as part:
                shutil.copyfile(other, part)
            return True
        return is_current(path, known, marks)

    def save_cell(self, image: Image.Image, cell: Cell) -> None:
        path = self.image_place(cell)
        make_folder(path.parent, "--out")
        save_image(image, path, self.marks_of(cell))

    def job_of(self, cell: Cell) -> Job:
        """The sampling of one cell."""
        return replace(self.job, prompts=(cell.prompt,), seeds=(cell.seed,))


def _described(value):
    """A setting for an image's metadata: images by their hash, whatever they are in."""
    if isinstance(value, Image.Image):
        return image_hash(value)
    if isinstance(value, Mapping):
        return {key: _described(one) for key, one in value.items()}
    return [_described(one) for one in value] if isinstance(value, list | tuple) else value


def folder_name(prompt: str) -> str:
    """A prompt as a folder's name: cut and cleaned, then with a part of its hash."""
    slug = re.sub(r"[^\w ,-]", "", prompt.lower())[:SLUG].strip()
    return prompt if prompt and slug == prompt else f"{slug} {hashlib.sha256(prompt.encode()).hexdigest()[:8]}".strip()


def read_png_marks(path: Path) -> dict | None:
    """What a PNG says that it was made with; None if it is not there or not whole."""
    try:
        with Image.open(path) as file:
            text = file.info.get("ditail", "{}")
            file.verify()
        return json.loads(text)
    except (OSError, SyntaxError, ValueError):
        return None


def is_made_with(known: dict | None, marks: dict) -> bool:
    return known is not None and all(known.get(key) == value for key, value in marks.items())


def is_current(path: Path, known: dict | None, marks: dict) -> bool:
    """Whether a file is there (`known` is not None). Raises DitailError if it was not made with `marks`."""
    if known is not None and "version" in known and known.get("matrix") != marks["matrix"]:
        raise DitailError(f"{path}", f"was made by an older version of Ditail ({known['version']}), whose images "
                          "differ; choose another folder")
    if known is not None and not is_made_with(known, marks):
        changed = ", ".join(key for key, value in marks.items() if known.get(key) != value)
        raise DitailError(f"{path}", f"was made with other settings or checkpoints ({changed}); choose another folder")
    return known is not None
