"""`python -m ditail matrix`: m checkpoints give m x m images of every prompt and seed.

First come the sources, one task per checkpoint and prompt: plain generation, which is the diagonal, and the source
latents. Then come the cells, one task per pair of checkpoints and prompt. In this order a process loads no checkpoint
more than twice. Images on disk that were generated with the same settings are kept.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..cache.folder import LatentFolder
from ..cache.latents import LatentCache
from ..content.images import read_image
from ..content.lists import check_image
from ..job.job import Job
from ..job.request import Request
from ..method.latents import SourceLatents
from .arguments import DISK_BYTES, RAM_BYTES, check_checkpoints, checkpoint_paths, job_of, prompts_of, size_of
from .checkpoint_files import read_config, read_sides
from .fanout import Options, fan_out, fixed_arithmetic, raise_failed
from .files import check_overwrites, make_folder, save_image
from .host import FileHost, FileLibrary, LoadedModels
from .matrix_folder import LATENTS, CellImage, Matrix
from .model import quiet
from .run import images_of
from .sheet import grid_sheet
from .values import files_of, values_of


class TaskCache(LatentCache):
    """A task's cache of source latents. computed: those that the task itself computed, with metadata, by key."""

    def __init__(self, known: Mapping[str, SourceLatents]):
        super().__init__(RAM_BYTES)
        for key, latents in known.items():
            super().put(key, latents)
        self.computed: dict[str, tuple[SourceLatents, Mapping[str, str]]] = {}

    def put(self, key: str, latents: SourceLatents, metadata: Mapping[str, str] | None = None) -> None:
        super().put(key, latents, metadata)
        self.computed[key] = latents, metadata or {}


@dataclass(frozen=True)
class Result:
    """A task's result: images by cell, and source latents with their metadata by key."""

    images: dict[CellImage, Image.Image]
    latents: dict[str, tuple[SourceLatents, Mapping[str, str]]]


@dataclass(frozen=True)
class CellTask:
    """The cells of one pair of checkpoints and one prompt.

    images: the cells whose images are missing. sources: cells of the diagonal whose source latents are missing. known:
    cached source latents by key.
    """

    matrix: Matrix
    images: Sequence[CellImage]
    sources: Sequence[CellImage] = ()
    known: Mapping[str, SourceLatents] = field(default_factory=dict)

    @property
    def cells(self) -> list[CellImage]:
        return list(dict.fromkeys([*self.images, *self.sources]))

    @property
    def name(self) -> str:
        cell = self.cells[0]
        pair = f"source {cell.source.stem}" if cell.is_plain else f"{cell.source.stem} in {cell.target.stem}"
        return f'{pair} of "{cell.prompt}"'

    def run(self, load: LoadedModels) -> Result:
        cache, images = TaskCache(self.known), {}
        for cell in self.cells:
            host, job = job_of_cell(self.matrix, cell, cache, load)
            is_recorded = False
            if not cell.is_plain or cell in self.sources:
                is_recorded = job.prepare([], can_record=cell in self.images)
            if cell in self.images:
                images[cell] = next(images_of(host, job, is_recorded=is_recorded))
        return Result(images, cache.computed)


def job_of_cell(matrix: Matrix, cell: CellImage, cache: LatentCache, load: LoadedModels) -> tuple[FileHost, Job]:
    """The job of one cell and its host; no model is loaded yet."""
    library = FileLibrary()
    request = Request.from_values({**matrix.values, "source_checkpoint": str(cell.source)}, library)
    host = FileHost(load, library.checkpoint(cell.target), matrix.job_of(cell), matrix.size)
    return host, Job(host, request, cache, is_plain=cell.is_plain)


def source_tasks(matrix: Matrix, missing: Sequence[CellImage], cache: LatentCache) -> Iterator[CellTask]:
    """The tasks for missing plain images, and for the source latents that the other missing cells need."""
    cells, load = set(missing), LoadedModels()
    for path in matrix.checkpoints:
        for prompt in matrix.prompts:
            diagonal = [CellImage(path, path, prompt, seed) for seed in matrix.seeds]
            needed = [cell for cell in diagonal
                      if any(cell._replace(target=t) in cells for t in matrix.checkpoints if t != path)]
            known: dict[str, SourceLatents] = {}
            sources = []
            for cell in needed:
                _, job = job_of_cell(matrix, cell, cache, load)
                if job.plan([]):
                    sources.append(cell)
                    known |= job.latents
            images = [cell for cell in diagonal if cell in cells]
            if images or sources:
                yield CellTask(matrix, images, sources, known)


def cell_tasks(matrix: Matrix, missing: Sequence[CellImage], cache: LatentCache, failed: Mapping[str, str],
               computed: Mapping[str, Sequence[str]]) -> Iterator[CellTask]:
    """The tasks for the missing cells whose sources have not failed; each reads its latents when it is taken.

    computed: the keys of the latents that each source task has computed, by its name.
    """
    groups: dict[tuple[Path, Path, str], list[CellImage]] = {}
    for cell in missing:
        if not cell.is_plain:
            groups.setdefault((cell.source, cell.target, cell.prompt), []).append(cell)
    for cells in groups.values():
        source_task = CellTask(matrix, [cells[0]._replace(target=cells[0].source)]).name
        if source_task in failed:
            continue
        # On another machine the same latents can have another key than here: it has the device.
        keys = computed.get(source_task, ())
        known = {key: latents for key in keys if (latents := cache.get(key)) is not None}
        for cell in cells:
            _, job = job_of_cell(matrix, cell, cache, LoadedModels())
            job.plan([])
            known |= job.latents
        yield CellTask(matrix, cells, known=known)


def command(args: Namespace) -> None:
    """Run `python -m ditail matrix` (options: `cli.add_matrix`) and print the grids' paths."""
    quiet()
    paths = [path.absolute() for path in checkpoint_paths(args.checkpoints)]
    prompts, options = prompts_of(args), Options.of(args)
    check_checkpoints(*paths)
    values = values_of(args)
    if args.image:
        values["source"] = "image"
    image = read_image(args.image) if args.image else check_image("image", values.pop("image", None))
    if image:
        values["image"] = image
    elif not values.get("collage"):
        values["source"] = "generate"
    size = size_of(args, read_sides(read_config(paths[0])), image)
    matrix = Matrix(args.out, paths, prompts, args.seeds, job_of(args), size, values)
    inputs = [*filter(None, (args.image, args.mask, args.prompts, args.settings)), *files_of(args.settings)]
    check_overwrites([matrix.grid_path(prompt, seed) for prompt in prompts for seed in args.seeds], inputs, "--out")
    folder = LatentFolder(args.cache or args.out / LATENTS, DISK_BYTES)
    for path in run(matrix, LatentCache(RAM_BYTES, folder), options):
        print(path)


def run(matrix: Matrix, cache: LatentCache, options: Options) -> list[Path]:
    """Generate the missing images. Returns the paths of the grids, one per prompt and seed.

    Raises DitailError before any work if the folder has images of other settings, and TasksFailed at the end, naming
    the failed tasks.
    """
    # Errors of the settings are raised before the folder is created.
    job_of_cell(matrix, next(matrix.cells()), LatentCache(0), LoadedModels())[1].plan([])
    make_folder(matrix.out, "--out")
    matrix.check_names()
    missing = [cell for cell in matrix.cells() if not matrix.has_image(cell)]
    if missing:
        generate_cells(matrix, missing, cache, options)
    return [write_grid(matrix, prompt, seed) for prompt in matrix.prompts for seed in matrix.seeds]


def generate_cells(matrix: Matrix, missing: Sequence[CellImage], cache: LatentCache, options: Options) -> None:
    """Generate the missing cells: first the sources, then the mixed images. Raises TasksFailed at the end."""
    computed: dict[str, Sequence[str]] = {}
    # The keys of source latents have the number of threads, so tasks are planned with that of their processes.
    with (fixed_arithmetic(options.threads), tqdm(total=len(missing), desc="matrix", unit="image") as bar,
          options.open(LoadedModels, len(missing)) as workers):
        sources = list(source_tasks(matrix, missing, cache))
        for tasks in (sources, cell_tasks(matrix, missing, cache, workers.failed, computed)):
            for task, result in fan_out(tasks, workers):
                computed[task.name] = list(result.latents)
                for key, (latents, metadata) in result.latents.items():
                    cache.put(key, latents, metadata)
                for cell, image in result.images.items():
                    matrix.save_cell(image, cell)
                    bar.update()
    raise_failed(workers.failed)


def write_grid(matrix: Matrix, prompt: str, seed: int) -> Path:
    """Write the titled grid of one prompt and seed. Returns its path."""
    names = [path.stem for path in matrix.checkpoints]
    grid = [[matrix.image_path(CellImage(row, column, prompt, seed)) for column in matrix.checkpoints]
            for row in matrix.checkpoints]
    path = matrix.grid_path(prompt, seed)
    title = f'"{prompt}": content of the row, style of the column'
    save_image(grid_sheet(title, names, names, grid), path, {**matrix.metadata, "prompt": prompt, "seed": seed})
    return path
