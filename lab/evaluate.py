"""`python -m lab evaluate`: every method on held-out scenes in all directions between the demo checkpoints' styles.

Work is cut into units that share an inversion, the tasks of `ditail.standalone.fanout`. What a unit measured is a line
of `results.jsonl` for each row and direction; a run goes on where an earlier one stopped.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ditail.errors import DitailError
from ditail.method.latents import SourceLatents
from ditail.standalone import demo_checkpoints
from ditail.standalone.fanout import Options, fan_out, raise_failed
from ditail.standalone.files import make_folder, unwritable
from ditail.standalone.model import Model, default_device, load_model, quiet
from ditail.standalone.sampling import SamplingJob, generate, image_to_image

from . import methods, metrics, perceptual, report
from .precision import has_bf16
from .rows import Row, all_rows, choose_rows

# The scenes from number 100 on are for tuning.
REPORTED = 100
BATCH = 25
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Material:
    """Checkpoints (style -> path), the trained classifier and the held-out scenes (style -> uint8 `[n, h, w, 3]`)."""

    checkpoints: dict[str, Path]
    classifier: Path
    captions: list[str]
    images: dict[str, np.ndarray]

    @property
    def styles(self) -> list[str]:
        return list(self.checkpoints)

    @property
    def directions(self) -> list[tuple[str, str]]:
        return [(source, target) for source in self.styles for target in self.styles if source != target]

    def digest(self) -> str:
        """Sixteen hex digits that change with any weight or scene."""
        digest = hashlib.sha256(json.dumps(self.captions).encode())
        for path in (*self.checkpoints.values(), self.classifier):
            digest.update(path.read_bytes())
        for images in self.images.values():
            digest.update(images.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Unit:
    """Rows that share a source style, some scenes and (where they need one) an inversion."""

    source: str
    rows: tuple[Row, ...]
    scenes: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.source}, scene {self.scenes[0]}: {', '.join(row.name for row in self.rows)}"

    def run(self, evaluator: "Evaluator") -> list[dict]:
        return evaluator.run(self)


def load_material() -> Material:
    """The demo checkpoints and scenes that ship with the project."""
    scenes = demo_checkpoints.held_out()
    images = {style: np.stack([np.asarray(p) for p in scenes.images[style]]) for style in demo_checkpoints.STYLES}
    return Material(demo_checkpoints.paths(), demo_checkpoints.classifier_path(), scenes.captions, images)


def cut_into_units(rows: Sequence[Row], styles: Sequence[str], scenes: int, done: set[tuple]) -> list[Unit]:
    """Units of what is not in `done` (row, source, scene): all rows on the first scenes before the next ones."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.inversion or row.name, []).append(row)
    units = []
    for first in range(0, scenes, BATCH):
        for group in groups.values():
            for source in styles:
                missing: dict[tuple[int, ...], list[Row]] = {}
                for row in group:
                    numbers = tuple(n for n in range(first, min(first + BATCH, scenes))
                                    if (row.name, source, n) not in done)
                    missing.setdefault(numbers, []).append(row)
                units += [Unit(source, tuple(left), numbers) for numbers, left in missing.items() if numbers]
    return units


class Evaluator:
    """The loaded models of one process, and what it does with them."""

    def __init__(self, material: Material):
        self.material = material
        self.device = default_device()
        self.models = {style: methods.accelerate(load_model(path)) for style, path in material.checkpoints.items()}
        if self.device.type == "cpu" and has_bf16():
            self.models = {style: methods.store_in_bf16(model) for style, model in self.models.items()}
        self.vae = next(iter(self.models.values()))
        self.vae.vae.to(memory_format=torch.channels_last)
        self.classifier = metrics.load_classifier(material.classifier, len(material.styles))
        # Of content images, by style and scenes: they are the same for many units.
        self.references: dict[tuple, tuple[list[np.ndarray], Tensor | None]] = {}

    @cached_property
    def similarity(self) -> perceptual.SelfSimilarity | None:
        return perceptual.load()

    def tensors(self, style: str, scenes: Sequence[int]) -> Tensor:
        """True images `[b, 3, h, w]` in -1..1."""
        pixels = torch.from_numpy(self.material.images[style][list(scenes)])
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    def job(self, row: Row, source: str, target: str, scenes: Sequence[int]) -> SamplingJob:
        """The row's settings; an image's seed depends on its scene and direction, not on its row."""
        direction = self.material.directions.index((source, target))
        return SamplingJob(tuple(self.material.captions[i] for i in scenes), steps=row.steps, omega=row.omega,
                           seeds=tuple(10_000 * (direction + 1) + i for i in scenes))

    def run(self, unit: Unit) -> list[dict]:
        """The unit's records, one for each row and target."""
        records, content = [], self.tensors(unit.source, unit.scenes)
        with methods.fast():
            z0 = self.vae.encode(content.contiguous(memory_format=torch.channels_last))
            shared = self.invert(unit.rows[0], unit.source, unit.scenes, z0) if self.is_shared(unit) else None
        for target in (style for style in self.material.styles if style != unit.source):
            for row in unit.rows:
                with methods.fast():
                    images, generated = self.make(row, unit, target, z0, shared)
                values = self.measure(images, generated, unit, target)
                records.append({"row": row.name, "source": unit.source, "target": target,
                                "scenes": list(unit.scenes), **values})
        return records

    def is_shared(self, unit: Unit) -> bool:
        """Whether one inversion, of the content image with the source model, is for both targets."""
        row = unit.rows[0]
        return row.inversion is not None and row.inverter == "source" and row.ditail.source == "image"

    def invert(self, row: Row, style: str, scenes: Sequence[int], z0: Tensor) -> SourceLatents:
        other = next(s for s in self.material.styles if s != style)
        return methods.source_latents(self.models[style], self.job(row, style, other, scenes), row.ditail, z0,
                                      is_null=row.is_null)

    def make(self, row: Row, unit: Unit, target: str, z0: Tensor,
             shared: SourceLatents | None) -> tuple[Tensor, Tensor | None]:
        """(the row's images `[b, 3, h, w]`, the content where it is generated)."""
        if row.way == "truth":
            return self.tensors(target, unit.scenes), None
        job, model = self.job(row, unit.source, target, unit.scenes), self.models[target]
        if row.ditail.source == "generate":
            z0, source = self.generated(row, job, unit.source, z0)
            return self.vae.decode(self.latents(row, job, model, unit.source, z0, source)), self.vae.decode(z0)
        source = self.invert(row, target, unit.scenes, z0) if row.inverter == "target" else shared
        return self.vae.decode(self.latents(row, job, model, unit.source, z0, source)), None

    def generated(self, row: Row, job: SamplingJob, style: str, like: Tensor) -> tuple[Tensor, SourceLatents | None]:
        """(`z_0` that the source model generates from the job's noise, its source latents for the row)."""
        model = self.models[style]
        z0, passed = generate(model, job, 8 * like.shape[-1], 8 * like.shape[-2])
        if row.inversion is None or row.ditail.source_latents == "kept":
            return z0, passed
        return z0, methods.source_latents(model, job, row.ditail, z0, is_null=row.is_null)

    def latents(self, row: Row, job: SamplingJob, target: Model, style: str, z0: Tensor,
                source: SourceLatents | None) -> Tensor:
        if row.way == "content":
            return z0
        if row.way == "plain":
            return methods.plain(target, job, z0)
        if row.way == "img2img":
            return image_to_image(target, job, z0, row.strength)
        if row.way == "refiner":
            return methods.refine(target, job, source, row.strength)
        if row.way == "anchored":
            return methods.anchored(target, self.models[style], job, row.ditail, z0)
        if row.way == "diffstyler":
            return methods.diffstyler(target, self.models[style], job, source, row.gain)
        return methods.ditail(target, job, row.ditail, source, z0)

    def measure(self, images: Tensor, generated: Tensor | None, unit: Unit, target: str) -> dict[str, list[float]]:
        """Every metric of every image `[b, 3, h, w]` in -1..1; structure against what was `generated`, if anything."""
        images = images.cpu()  # the classifier and the similarity are there
        index, truth = self.material.styles.index(target), self.tensors(target, unit.scenes)
        edges, similarity = self.reference(unit) if generated is None else self.structure(generated.cpu())
        image_edges, image_similarity = self.structure(images)
        columns = {"style": self.classifier.probabilities(images)[:, index].tolist(),
                   "edge_f1": [metrics.edge_f1(a, b) for a, b in zip(image_edges, edges, strict=True)],
                   "l1": [metrics.l1(a, b) for a, b in zip(*map(metrics.to_arrays, (images, truth)), strict=True)]}
        if similarity is not None and image_similarity is not None:
            columns["distance"] = perceptual.distance(image_similarity, similarity)
        return {name: [round(v, 5) for v in values] for name, values in columns.items()}

    def structure(self, images: Tensor) -> tuple[list[np.ndarray], Tensor | None]:
        """Edge maps and self-similarities of images `[b, 3, h, w]`."""
        edges = [metrics.find_edges(image) for image in metrics.to_arrays(images)]
        return edges, self.similarity.of(images) if self.similarity else None

    def reference(self, unit: Unit) -> tuple[list[np.ndarray], Tensor | None]:
        key = unit.source, unit.scenes
        if key not in self.references:
            self.references[key] = self.structure(self.tensors(unit.source, unit.scenes))
        return self.references[key]


def start_evaluator(material: Material) -> Evaluator:
    """What a process starts with."""
    quiet()
    return Evaluator(material)


def run_units(units: Sequence[Unit], material: Material, progress: bool, options: Options) -> Iterator[list[dict]]:
    """The records of each unit as it ends, in no certain order. Raises TasksFailed at the end for what failed."""
    total = sum(len(unit.scenes) * len(unit.rows) for unit in units) * (len(material.styles) - 1)
    with (tqdm(total=total, unit="image", disable=not progress) as bar,
          options.open(partial(start_evaluator, material), len(units)) as workers):
        for _, records in fan_out(units, workers):
            bar.update(sum(len(r["scenes"]) for r in records))
            yield records
    raise_failed(workers.failed)


def read_records(path: Path, key: dict) -> list[dict]:
    """The records of an evaluation that was interrupted; a line that was cut off is not one.

    Raises DitailError if its settings were others.
    """
    if not path.exists():
        return []
    try:
        first, *lines = path.read_text(encoding="utf-8").strip().splitlines()
        before = json.loads(first)["settings"]
        records = [record for line in lines if (record := _parsed(line))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DitailError(f"{path}", f"can't be read as an evaluation's results ({error!r})") from error
    if before != key:
        changed = [k for k in key if before.get(k) != key[k]]
        raise DitailError(f"{path}", f"was made with other {' and '.join(changed)}; choose another folder")
    return records


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def add_lines(path: Path, values: Sequence[dict]) -> None:
    """Append a line of JSON for each of the values, at once: two runs may write to one file.

    Raises DitailError if that can't be done.
    """
    # Each on a line of its own, also after one that was cut off.
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join("\n" + json.dumps(value) for value in values))
    except OSError as error:
        raise unwritable(path, error) from error


def check_scenes(scenes: int, held_out: int) -> None:
    """Raise DitailError for a number that is out of range."""
    most = min(REPORTED, held_out)
    if isinstance(scenes, bool) or not isinstance(scenes, int) or not 1 <= scenes <= most:
        raise DitailError("scenes", f"must be a whole number from 1 to {most}, got {scenes!r}")


def command(args: Namespace) -> None:
    """See `lab.cli.add_evaluate`."""
    for path in run(args.out, scenes=args.scenes, rows=args.rows, options=Options.of(args), page=args.page):
        print(path)


def run(out: Path, *, scenes: int = REPORTED, rows: str | None = None, progress: bool = True,
        material: Material | None = None, options: Options | None = None, page: Path | None = None) -> list[Path]:
    """Run the evaluation, or what is left of it, into the folder `out`; the files written are returned.

    scenes: held-out scenes a direction. rows: beginnings of row names, comma-separated, to restrict it. page:
    see `report.paste`. Raises DitailError for a value out of range or a folder of other settings.
    """
    chosen = choose_rows(rows)
    material = material or load_material()
    check_scenes(scenes, len(material.captions))
    key = {"weights and scenes": material.digest()}
    make_folder(out, "--out")
    path = out / RESULTS
    records = read_records(path, key)
    if not path.exists():
        add_lines(path, [{"settings": key}])
    done = {(r["row"], r["source"], scene) for r in records for scene in r["scenes"]}
    units = cut_into_units(chosen, material.styles, scenes, done)
    for records in run_units(units, material, progress, options or Options()) if units else ():
        add_lines(path, records)
    return report.write_report(out, all_rows(), read_records(path, key), page)
