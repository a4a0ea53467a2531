"""The folder of a matrix: the path of each image, and whether an existing image has the same settings."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..content.settings import DitailSettings
from ..errors import DitailError
from ..job.plan import image_hash
from .files import caseless, check_name, make_folder, save_image, whole_file
from .samplers import noise_mark
from .sampling import SamplingJob

SLUG = 40
# Names of devices on Windows, which no file can have.
RESERVED = re.compile("con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]")
# Images of a matrix of another format can't be combined with new ones.
FORMAT = 2
# The subfolder of the source latents.
LATENTS = ".latents"
# Settings that are not in an image's metadata: its cell has the source, and the preset's values are there.
NOT_IN_METADATA = ("enabled", "preset", "source_checkpoint", "source_vae", "hires", "show_source")


class CellImage(NamedTuple):
    """One image of a cell: content of `source`, style of `target`; plain generation if both are the same."""

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
    """A matrix that is written to the folder `out`.

    job: the sampling, without a prompt. size: (width, height) in pixels. values: Ditail's settings by key, without
    `source_checkpoint`; without a content image, each checkpoint generates its own content.
    """

    out: Path
    checkpoints: Sequence[Path]
    prompts: Sequence[str]
    seeds: Sequence[int]
    job: SamplingJob
    size: tuple[int, int]
    values: Mapping

    def cells(self) -> Iterator[CellImage]:
        """All cells, ordered by target, then by prompt."""
        for target in self.checkpoints:
            for prompt in self.prompts:
                for source in self.checkpoints:
                    yield from (CellImage(source, target, prompt, seed) for seed in self.seeds)

    def check_names(self) -> None:
        """Raise DitailError if two cells would be the same file, or a file's name is too long for the folder `out`."""
        names = set()
        for source, target in product(self.checkpoints, repeat=2):
            path = self.out / CellImage(source, target, "", 0).name
            check_name(path, "--out")
            if caseless(path) in names:
                raise DitailError(None, f"matrix: two images would have the name {path.name}; rename a checkpoint")
            names.add(caseless(path))

    @cached_property
    def metadata(self) -> dict:
        """The metadata that all images have in common, as JSON returns it."""
        images = {key: self.values[key] for key in ("image", "mask") if key in self.values}
        plain = {key: value for key, value in self.values.items() if key not in images}
        settings = {**asdict(DitailSettings.from_dict(plain)), **images}
        job = self.job
        common = {"matrix": FORMAT, "size": self.size, "steps": job.steps, "sampler": job.sampler, "omega": job.omega,
                  "negative_prompt": job.negative_prompt, **noise_mark(job.sampler),
                  **{key: _described(value) for key, value in settings.items() if key not in NOT_IN_METADATA}}
        return json.loads(json.dumps(common))

    @cached_property
    def files(self) -> dict[Path, list]:
        """Each checkpoint's [name, size, modification time in ns, hash of its yaml], to detect a replaced file."""
        yamls = {p: hashlib.sha256(p.with_suffix(".yaml").read_bytes()).hexdigest()[:16] for p in self.checkpoints}
        return {p: [p.stem, p.stat().st_size, p.stat().st_mtime_ns, yamls[p]] for p in self.checkpoints}

    def metadata_of(self, cell: CellImage) -> dict:
        """The metadata of an image: everything that it depends on."""
        return {**self.metadata, "prompt": cell.prompt, "seed": cell.seed, "source": self.files[cell.source],
                "target": self.files[cell.target]}

    def paths(self, name: str, prompt: str, seed: int) -> list[Path]:
        """[the path of a file, its path in a matrix with more or fewer prompts and seeds].

        With one prompt and seed files are in `out` itself, else in folders of their names.
        """
        paths = [self.out / folder_name(prompt) / f"seed {seed}" / name, self.out / name]
        return paths[::-1] if len(self.prompts) == len(self.seeds) == 1 else paths

    def image_path(self, cell: CellImage) -> Path:
        return self.paths(cell.name, cell.prompt, cell.seed)[0]

    def grid_path(self, prompt: str, seed: int) -> Path:
        return self.paths("matrix.png", prompt, seed)[0]

    def has_image(self, cell: CellImage) -> bool:
        """Whether the image exists at either of its paths. Raises DitailError if it has other settings."""
        metadata, (path, other) = self.metadata_of(cell), self.paths(cell.name, cell.prompt, cell.seed)
        existing = read_png_metadata(path)
        if existing is None and matches(read_png_metadata(other), metadata):
            make_folder(path.parent, "--out")
            with whole_file(path) as part:
                shutil.copyfile(other, part)
            return True
        return is_current(path, existing, metadata)

    def save_cell(self, image: Image.Image, cell: CellImage) -> None:
        path = self.image_path(cell)
        make_folder(path.parent, "--out")
        save_image(image, path, self.metadata_of(cell))

    def job_of(self, cell: CellImage) -> SamplingJob:
        """The sampling of a cell."""
        return replace(self.job, prompts=(cell.prompt,), seeds=(cell.seed,))


def _described(value):
    """A setting for an image's metadata, with a hash for each image in it."""
    if isinstance(value, Image.Image):
        return image_hash(value)
    if isinstance(value, Mapping):
        return {key: _described(item) for key, item in value.items()}
    return [_described(item) for item in value] if isinstance(value, list | tuple) else value


def folder_name(prompt: str) -> str:
    """A folder name for a prompt; one that is cut, cleaned or reserved has a part of the prompt's hash."""
    slug = re.sub(r"[^\w ,-]", "", prompt.lower())[:SLUG].strip()
    if prompt and slug == prompt and not RESERVED.fullmatch(slug):
        return prompt
    return f"{slug} {hashlib.sha256(prompt.encode()).hexdigest()[:8]}".strip()


def read_png_metadata(path: Path) -> dict | None:
    """The metadata of a PNG, empty for one that Ditail did not write; None if it does not exist or is damaged."""
    try:
        with Image.open(path) as file:
            text = file.info.get("ditail", "{}")
            file.verify()
        metadata = json.loads(text)
    except Image.DecompressionBombError:
        return {}
    except (OSError, SyntaxError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else {}


def matches(existing: dict | None, metadata: dict) -> bool:
    """Whether a PNG's metadata (None: no file) has all of `metadata`."""
    return existing is not None and all(existing.get(key) == value for key, value in metadata.items())


def is_current(path: Path, existing: dict | None, metadata: dict) -> bool:
    """Whether a file exists, by its metadata (None: no file). Raises DitailError unless it has all of `metadata`."""
    if existing is not None and "version" in existing and existing.get("matrix") != metadata["matrix"]:
        raise DitailError(f"{path}", f"was made by an older version of Ditail ({existing['version']}), whose images "
                          "differ; choose another folder")
    if existing is not None and not matches(existing, metadata):
        changed = ", ".join(key for key, value in metadata.items() if existing.get(key) != value)
        raise DitailError(f"{path}", f"was made with other settings or checkpoints ({changed}); choose another folder")
    return existing is not None
