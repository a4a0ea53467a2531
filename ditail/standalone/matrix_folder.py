"""The folder of a matrix: where each image and source latents belong, and whether what is there can be kept."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import DitailError
from ..method.latents import SourceLatents
from .files import make_folder, save_image, unwritable, whole_file
from .sampling import Job

SLUG = 40
# The folder of the source latents, beside the images.
LATENTS = "latents"


class Cell(NamedTuple):
    """One image: content of `source`, style of `target`; where they are the same, plain generation."""

    source: Path
    target: Path
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.source.stem} in {self.target.stem}.png"


@dataclass(frozen=True)
class Matrix:
    """What is to be made into the folder `out`. sizes: each checkpoint's (width, height) in pixels; job: the rest.

    image: the content image, inverted with each checkpoint; without one, each generates its own content.
    """

    out: Path
    sizes: dict[Path, tuple[int, int]]
    prompts: Sequence[str]
    seeds: Sequence[int]
    job: Job
    image: Image.Image | None

    def cells(self) -> Iterator[Cell]:
        """Ordered by target, then by prompt."""
        for target in self.sizes:
            for prompt in self.prompts:
                for source in self.sizes:
                    yield from (Cell(source, target, prompt, seed) for seed in self.seeds)

    @cached_property
    def marks(self) -> dict:
        """What every image depends on, whatever its cell, as JSON gives it back."""
        content = self.image and hashlib.sha256(self.image.tobytes()).hexdigest()[:16]
        own = {f.name: getattr(self.job, f.name) for f in fields(self.job) if f.name not in ("prompts", "seeds")}
        return json.loads(json.dumps({**own, "image": content}))

    @cached_property
    def files(self) -> dict[Path, list]:
        """Each checkpoint's name, size and time of change, and its yaml's hash: what says that it is another one."""
        yamls = {p: hashlib.sha256(p.with_suffix(".yaml").read_bytes()).hexdigest()[:16] for p in self.sizes}
        return {p: [p.stem, p.stat().st_size, p.stat().st_mtime_ns, yamls[p]] for p in self.sizes}

    def marks_of(self, cell: Cell) -> dict:
        """What the image depends on."""
        return {**self.latents_marks(cell), "target": self.files[cell.target], "seed": cell.seed}

    def latents_marks(self, cell: Cell) -> dict:
        """What the source latents depend on."""
        return {**self.marks, "prompt": cell.prompt, "seed": self.latents_seed(cell),
                "source": self.files[cell.source], "size": list(self.sizes[cell.source])}

    def latents_seed(self, cell: Cell) -> int | None:
        return None if self.image else cell.seed

    def places(self, name: str, prompt: str, seed: int | None) -> list[Path]:
        """Where a file belongs, and where it would belong if more or fewer prompts and seeds were asked for.

        That is in `out` itself for one prompt and seed, else in folders of their names.
        """
        folder = self.out / folder_name(prompt)
        places = [(folder if seed is None else folder / f"seed {seed}") / name, self.out / name]
        return places[::-1] if len(self.prompts) == len(self.seeds) == 1 else places

    def image_place(self, cell: Cell) -> Path:
        return self.places(cell.name, cell.prompt, cell.seed)[0]

    def latents_place(self, cell: Cell) -> Path:
        name = f"{LATENTS}/{cell.source.stem}.safetensors"
        return self.places(name, cell.prompt, self.latents_seed(cell))[0]

    def has_image(self, cell: Cell) -> bool:
        """Whether it is in its place; from the other one it is copied. Raises DitailError for one that is stale."""
        marks, (path, other) = self.marks_of(cell), self.places(cell.name, cell.prompt, cell.seed)
        made = read_png_marks(path)
        if made is None and is_made_with(read_png_marks(other), marks):
            make_folder(path.parent, "--out")
            with whole_file(path) as part:
                shutil.copyfile(other, part)
            return True
        return is_current(path, made, marks)

    def load_latents(self, cell: Cell) -> SourceLatents | None:
        """The cell's source latents if they are on disk. Raises DitailError for those that are stale."""
        path = self.latents_place(cell)
        try:
            latents, metadata = SourceLatents.load(path)
        except DitailError:
            return None
        return latents if is_current(path, json.loads(metadata.get("ditail", "{}")), self.latents_marks(cell)) else None

    def save_cell(self, image: Image.Image, cell: Cell) -> None:
        path = self.image_place(cell)
        make_folder(path.parent, "--out")
        save_image(image, path, self.marks_of(cell))

    def save_latents(self, latents: SourceLatents, cell: Cell) -> None:
        path = self.latents_place(cell)
        make_folder(path.parent, "--out")
        try:
            latents.save(path, {"ditail": json.dumps(self.latents_marks(cell))})
        except OSError as error:
            raise unwritable(path, error) from error


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


def is_made_with(made: dict | None, marks: dict) -> bool:
    return made is not None and all(made.get(key) == value for key, value in marks.items())


def is_current(path: Path, made: dict | None, marks: dict) -> bool:
    """Whether a file is there (`made` is not None). Raises DitailError if it was not made with `marks`."""
    if made is not None and not is_made_with(made, marks):
        changed = ", ".join(key for key, value in marks.items() if made.get(key) != value)
        raise DitailError(f"{path}", f"was made with other settings or checkpoints ({changed}); choose another folder")
    return made is not None
