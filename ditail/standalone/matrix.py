"""`python -m ditail matrix`: m checkpoints give m x m images of every prompt and seed.

First the sources, one task a checkpoint and prompt: plain generation, which is the diagonal, and the source latents.
Then the cells, one task a pair of checkpoints and prompt. In this order a process loads no checkpoint more than twice.
What is on disk, whole and made with the same settings, is not made again.
"""

import hashlib
import json
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from ..errors import DitailError
from ..images import fit, picture_to_tensor, read_picture
from ..latents import SourceLatents
from .arguments import check_partner_files, checkpoint_paths, job_of, prompts_of, size_of
from .fanout import Options, fan_out, raise_failed
from .files import make_folder, save_image, unwritable, whole_file
from .model import Model, load_model, quiet, read_config, read_sides
from .pipeline import Job, decode_image, generate, invert_with, transfer
from .sheet import grid_sheet

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


class LastModel:
    """Loads checkpoints and keeps the last one: no two are in memory together."""

    def __init__(self):
        quiet()
        self._models: dict[Path, Model] = {}

    def __call__(self, path: Path) -> Model:
        if path not in self._models:
            self._models.clear()
            self._models[path] = load_model(path)
        return self._models[path]


@dataclass(frozen=True)
class SourceTask:
    """A checkpoint's own images of a prompt, one for each of `seeds`, and its source latents.

    Without a content image these are what generation passed through; with one, those of its inversion, if `inverts`.
    content: the image at the `size`, (width, height) in pixels.
    """

    checkpoint: Path
    job: Job
    size: tuple[int, int]
    seeds: tuple[int, ...]
    content: Image.Image | None
    inverts: bool

    @property
    def name(self) -> str:
        return f'source {self.checkpoint.stem} of "{self.job.prompts[0]}"'

    def run(self, load: LastModel) -> tuple[dict[int, Image.Image], dict[int | None, SourceLatents]]:
        """(seed -> image, seed -> latents); those of an inversion, where seeds play no part, under None."""
        model = load(self.checkpoint.absolute())
        images: dict[int, Image.Image] = {}
        latents: dict[int | None, SourceLatents] = {}
        for seed in self.seeds:
            z, latents[seed] = generate(model, self.job.with_(seeds=(seed,)), *self.size)
            images[seed] = decode_image(model, z)
        if self.content is None:
            return images, latents
        if not self.inverts:
            return images, {}
        return images, {None: invert_with(model, self.job, model.encode(picture_to_tensor(self.content)))}


@dataclass(frozen=True)
class CellTask:
    """The images of one pair of checkpoints and one prompt: `latents` has the source's for each seed."""

    source: Path
    target: Path
    job: Job
    latents: dict[int, SourceLatents]

    @property
    def name(self) -> str:
        return f'{self.source.stem} in {self.target.stem} of "{self.job.prompts[0]}"'

    def run(self, load: LastModel) -> dict[int, Image.Image]:
        """seed -> image."""
        model = load(self.target.absolute())
        return {seed: decode_image(model, transfer(model, self.job.with_(seeds=(seed,)), latents))
                for seed, latents in self.latents.items()}


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
        raise DitailError(f"{path}: was made with other settings or checkpoints ({changed}); choose another folder",
                          "out")
    return made is not None


def source_tasks(matrix: Matrix, missing: Sequence[Cell]) -> Iterator[SourceTask]:
    """What has to be made before the cells that are missing, one task a checkpoint and prompt."""
    wanted = set(missing)
    for path, size in matrix.sizes.items():
        content = matrix.image and fit(matrix.image, *size)
        for prompt in matrix.prompts:
            own = [Cell(path, path, prompt, seed) for seed in matrix.seeds]
            needed = [c for c in own if any(c._replace(target=t) in wanted for t in matrix.sizes if t != path)]
            lacking = {matrix.latents_seed(c) for c in needed if matrix.load_latents(c) is None}
            seeds = tuple(c.seed for c in own if c in wanted or c.seed in lacking)
            if seeds or lacking:
                yield SourceTask(path, matrix.job.with_(prompts=(prompt,)), size, seeds, content, None in lacking)


def cell_tasks(matrix: Matrix, missing: Sequence[Cell]) -> Iterator[CellTask]:
    """The missing cells whose source latents there are; these are read as the tasks are drawn."""
    groups: dict[tuple[Path, Path, str], list[Cell]] = {}
    for cell in missing:
        if cell.source != cell.target:
            groups.setdefault((cell.source, cell.target, cell.prompt), []).append(cell)
    for (source, target, prompt), cells in groups.items():
        latents = {c.seed: made for c in cells if (made := matrix.load_latents(c)) is not None}
        if latents:
            yield CellTask(source, target, matrix.job.with_(prompts=(prompt,)), latents)


def command(args: Namespace) -> None:
    """See `cli.add_matrix`."""
    quiet()
    paths = checkpoint_paths(args.checkpoints)
    prompts = prompts_of(args)
    image = read_picture(args.image, "image") if args.image else None
    options = Options.of(args)
    check_partner_files(*paths)
    sizes = {path: size_of(args, read_sides(read_config(path)), image) for path in paths}
    job = job_of(args, prompts[0], args.seeds[0])
    for path in run(Matrix(args.out, sizes, prompts, args.seeds, job, image), options):
        print(path)


def run(matrix: Matrix, options: Options) -> list[Path]:
    """Make what is missing; the grids are returned, one a prompt and seed.

    Raises DitailError before anything is made if the folder holds what was made with other settings, and TasksFailed at
    the end, naming what failed.
    """
    make_folder(matrix.out, "--out")
    missing = [cell for cell in matrix.cells() if not matrix.has_image(cell)]
    if missing:
        make(matrix, missing, options)
    return [write_grid(matrix, prompt, seed) for prompt in matrix.prompts for seed in matrix.seeds]


def make(matrix: Matrix, missing: Sequence[Cell], options: Options) -> None:
    """Make the missing cells: first the sources, then what is mixed. Raises TasksFailed at the end."""
    wanted, sources = set(missing), list(source_tasks(matrix, missing))
    with (tqdm(total=len(missing), desc="matrix", unit="image") as bar,
          options.open(LastModel, len(missing)) as workers):
        for task, (images, latents) in fan_out(sources, workers):
            cell = Cell(task.checkpoint, task.checkpoint, task.job.prompts[0], 0)
            for seed, made in latents.items():
                matrix.save_latents(made, cell._replace(seed=seed))
            for seed, image in images.items():
                if (own := cell._replace(seed=seed)) in wanted:
                    matrix.save_cell(image, own)
                    bar.update()
        for pair, images in fan_out(cell_tasks(matrix, missing), workers):
            for seed, image in images.items():
                matrix.save_cell(image, Cell(pair.source, pair.target, pair.job.prompts[0], seed))
                bar.update()
    raise_failed(workers.failed)


def write_grid(matrix: Matrix, prompt: str, seed: int) -> Path:
    """The titled grid of one prompt and seed."""
    names = [path.stem for path in matrix.sizes]
    grid = [[Image.open(matrix.image_place(Cell(row, column, prompt, seed))) for column in matrix.sizes]
            for row in matrix.sizes]
    path = matrix.places("matrix.png", prompt, seed)[0]
    title = f'"{prompt}": content of the row, style of the column'
    save_image(grid_sheet(title, names, names, grid), path, {**matrix.marks, "prompt": prompt, "seed": seed})
    return path
