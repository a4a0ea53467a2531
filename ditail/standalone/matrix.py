"""`python -m ditail matrix`: m checkpoints give m x m images of every prompt and seed.

First the sources, one task a checkpoint and prompt: plain generation, which is the diagonal, and the source latents.
Then the cells, one task a pair of checkpoints and prompt. In this order a process loads no checkpoint more than twice.
What is on disk, whole and made with the same settings, is not made again.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..content.images import fit, image_to_tensor, read_image
from ..method.latents import SourceLatents
from .arguments import check_partner_files, checkpoint_paths, job_of, prompts_of, size_of
from .checkpoint_files import read_config, read_sides
from .fanout import Options, fan_out, raise_failed
from .files import make_folder, save_image
from .host import LastModel
from .matrix_folder import Cell, Matrix
from .model import quiet
from .pipeline import invert_with, transfer
from .sampling import Job, decode_image, generate
from .sheet import grid_sheet


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
        return images, {None: invert_with(model, self.job, model.encode(image_to_tensor(self.content)))}


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
    image = read_image(args.image, "image") if args.image else None
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
