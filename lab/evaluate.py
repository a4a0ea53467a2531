"""`python -m lab evaluate`: every method on held-out scenes in all directions between the demo checkpoints' styles.

Work is cut into units that share an inversion, the tasks of `ditail.standalone.fanout`. On a CPU, processes with one
thread each are faster than one with many threads, and give the same numbers on any number of cores.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ditail.errors import DitailError
from ditail.method.latents import SourceLatents
from ditail.standalone import demo_checkpoints
from ditail.standalone.fanout import Options, fan_out, raise_failed
from ditail.standalone.files import make_folder, whole_file
from ditail.standalone.model import Model, default_device, load_model, quiet

from . import metrics, report
from .pipeline import Job, generate, image_to_image, invert_with, noised_source, transfer

ALPHAS = (1.0, 2.0, 3.0, 5.0, 8.0)
BETAS = (0.0, 0.5, 1.0)
OMEGAS = (3.0, 7.5)
STRENGTHS = (0.4, 0.6, 0.8)
MAIN = (3.0, 0.5)
BATCH = 16
RESULTS = "results.json"

TRUTH, TRUTH_VAE, CONTENT_VAE = "true target image", "true target through the VAE", "content through the VAE"
PLAIN, IMG2IMG, NOISED = "plain generation", "img2img", "Ditail without inversion"
START_ONLY, DITAIL = "inverted start, no injection", "Ditail"


@dataclass(frozen=True)
class Row:
    """One line of the table: a method and its settings; `strength` is img2img's denoising."""

    method: str
    omega: float | None = None
    strength: float | None = None
    alpha: float | None = None
    beta: float | None = None

    @property
    def name(self) -> str:
        parts = [self.method] + ([f"{self.strength:g}"] if self.strength else [])
        for key in ("alpha", "beta", "omega"):
            value = getattr(self, key)
            parts += [] if value is None else [f"{key} {value:g}"]
        return " ".join(parts)

    @property
    def thinned(self) -> bool:
        """Whether the row may run on fewer scenes: the grid around the main setting."""
        return self.method == DITAIL and (self.alpha, self.beta) != MAIN


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on. A grid row takes every `thinning`-th scene, another set for each source style."""

    scenes: int = 100
    steps: int = 10
    thinning: int = 3

    def scenes_of(self, row: Row, source: int) -> range:
        """The scenes of a row in the directions that leave the style number `source`."""
        return range(source % self.thinning, self.scenes, self.thinning) if row.thinned else range(self.scenes)


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
    """Rows that share a source style, its scenes and (where they need one) its inversion."""

    source: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return f"{self.source}: {', '.join(row.name for row in self.rows)}"

    def run(self, evaluator: "Evaluator") -> list[dict]:
        return evaluator.run(self)


def all_rows() -> list[Row]:
    """Every row of the table: the references, the rivals, and the grid of alpha and beta."""
    rows = [Row(TRUTH), Row(TRUTH_VAE), Row(CONTENT_VAE)]
    rows += [Row(PLAIN, w) for w in OMEGAS]
    rows += [Row(IMG2IMG, w, strength=s) for w in OMEGAS for s in STRENGTHS]
    rows += [Row(NOISED, w) for w in OMEGAS]
    rows += [Row(START_ONLY, w, None, *MAIN) for w in OMEGAS]
    return rows + [Row(DITAIL, w, None, a, b) for w in OMEGAS for a in ALPHAS for b in BETAS]


def choose_rows(only: str | None) -> list[Row]:
    """The rows whose name has one of the comma-separated parts of `only` in it; all for None."""
    parts = [p.strip().lower() for p in only.split(",") if p.strip()] if only else [""]
    rows = [r for r in all_rows() if any(p in r.name.lower() for p in parts)]
    if not rows:
        names = ", ".join(dict.fromkeys(r.method for r in all_rows()))
        raise DitailError("rows", f"nothing is called {only!r}; there are {names}")
    return rows


def cut_into_units(rows: Sequence[Row], styles: Sequence[str], done: set[tuple[str, str, str]]) -> list[Unit]:
    """Units of the rows that are not in `done` (row, source, target), those on all scenes first."""
    groups = {}
    for row in rows:
        for source in styles:
            if any((row.name, source, t) not in done for t in styles if t != source):
                inverts = row.method in (START_ONLY, DITAIL)
                key = (row.alpha, row.beta) if inverts else (row.method, row.strength)
                groups.setdefault((source, key), []).append(row)
    units = [Unit(source, tuple(group)) for (source, _), group in groups.items()]
    return sorted(units, key=lambda u: u.rows[-1].thinned)


def load_material() -> Material:
    """The demo checkpoints and scenes that ship with the project."""
    scenes = demo_checkpoints.held_out()
    images = {style: np.stack([np.asarray(p) for p in scenes.images[style]]) for style in demo_checkpoints.STYLES}
    return Material(demo_checkpoints.paths(), demo_checkpoints.classifier_path(), scenes.captions, images)


class Evaluator:
    """The loaded models of one process, and what it does with them."""

    def __init__(self, material: Material, settings: Settings):
        self.material, self.settings = material, settings
        self.models = {style: load_model(path) for style, path in material.checkpoints.items()}
        self.vae = next(iter(self.models.values()))
        self.vae.vae.to(memory_format=torch.channels_last)
        self.classifier = metrics.load_classifier(material.classifier, len(material.styles))

    def tensors(self, style: str, scenes: Sequence[int]) -> Tensor:
        """True images `[b, 3, h, w]` in -1..1."""
        pixels = torch.from_numpy(self.material.images[style][list(scenes)])
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    def job(self, row: Row, source: str, target: str, scenes: Sequence[int]) -> Job:
        """The row's settings; an image's seed depends on its scene and direction, not on its row."""
        styles = self.material.styles
        direction = styles.index(source) * len(styles) + styles.index(target)
        given = {k: v for k, v in (("omega", row.omega), ("alpha", row.alpha), ("beta", row.beta)) if v is not None}
        return Job(tuple(self.material.captions[i] for i in scenes), steps=self.settings.steps,
                   seeds=tuple(10_000 * direction + i for i in scenes), **given)

    def run(self, unit: Unit) -> list[dict]:
        """The unit's records, one for each row and target."""
        scenes = self.settings.scenes_of(unit.rows[-1], self.material.styles.index(unit.source))
        targets = [style for style in self.material.styles if style != unit.source]
        records = {(row, t): {"row": row.name, "source": unit.source, "target": t, "scenes": list(scenes)}
                   | {name: [] for name in report.METRICS} for row in unit.rows for t in targets}
        for first in range(0, len(scenes), BATCH):
            batch = scenes[first : first + BATCH]
            content = self.tensors(unit.source, batch)
            z0, source = self.invert(unit, content, batch)
            for (row, target), record in records.items():
                truth = self.tensors(target, batch)
                job = self.job(row, unit.source, target, batch)
                made = self.make(row, self.models[target], job, z0, source, truth)
                for name, values in self.measure(made, content, truth, target).items():
                    record[name] += values
        return list(records.values())

    def invert(self, unit: Unit, content: Tensor, scenes: Sequence[int]) -> tuple[Tensor, SourceLatents | None]:
        """(`z_0`, the source latents where the unit's rows need them); no target or omega plays a part."""
        with fast():
            z0 = self.vae.encode(content.contiguous(memory_format=torch.channels_last))
            if unit.rows[0].alpha is None:
                return z0, None
            job = self.job(unit.rows[0], unit.source, unit.source, scenes)
            return z0, invert_with(self.models[unit.source], job, z0)

    def make(self, row: Row, target: Model, job: Job, z0: Tensor, source: SourceLatents | None,
             truth: Tensor) -> Tensor:
        """The row's images `[b, 3, h, w]`."""
        if row.method == TRUTH:
            return truth
        with fast():
            return self.vae.decode(self.make_latents(row, target, job, z0, source, truth))

    def make_latents(self, row: Row, target: Model, job: Job, z0: Tensor, source: SourceLatents | None,
                     truth: Tensor) -> Tensor:
        if row.method == CONTENT_VAE:
            return z0
        if row.method == TRUTH_VAE:
            return self.vae.encode(truth)
        if row.method == PLAIN:
            return generate(target, job, truth.shape[-1], truth.shape[-2])[0]
        if row.method == IMG2IMG:
            return image_to_image(target, job, z0, row.strength)
        if row.method == NOISED:
            return transfer(target, job, noised_source(target, job, z0))
        if row.method == START_ONLY:
            job = job.with_(conv_ratio=0.0, attn_ratio=0.0)
        return transfer(target, job, source)

    def measure(self, made: Tensor, content: Tensor, truth: Tensor, target: str) -> dict[str, list[float]]:
        """Every metric of every image; tensors `[b, 3, h, w]` in -1..1."""
        style = self.classifier.probabilities(made)
        index = self.material.styles.index(target)
        columns = {"style": style[:, index].tolist(), "style_share": (style.argmax(-1) == index).float().tolist()}
        images = zip(*map(metrics.to_arrays, (made, content, truth)), strict=True)
        columns |= {name: [] for name in ("edge_f1", "iou", "l1", "ssim")}
        for image, kept, true in images:
            columns["edge_f1"].append(metrics.edge_f1(metrics.find_edges(image), metrics.find_edges(kept)))
            columns["iou"].append(metrics.iou(metrics.find_foreground(image), metrics.find_foreground(kept)))
            columns["l1"].append(metrics.l1(image, true))
            columns["ssim"].append(metrics.ssim(image, true))
        return {name: [round(v, 5) for v in values] for name, values in columns.items()}


@contextmanager
def fast() -> Iterator[None]:
    """bf16 on a CPU: a third less time and the same images to the eye."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=default_device().type == "cpu"):
        yield


def start_evaluator(material: Material, settings: Settings) -> Evaluator:
    """What a process starts with."""
    quiet()
    return Evaluator(material, settings)


def run_units(units: Sequence[Unit], material: Material, settings: Settings, progress: bool,
              options: Options) -> Iterator[list[dict]]:
    """The records of each unit as it ends, in no certain order. Raises TasksFailed at the end for what failed."""
    total = sum(len(settings.scenes_of(r, material.styles.index(u.source))) for u in units for r in u.rows)
    with (tqdm(total=total * (len(material.styles) - 1), unit="image", disable=not progress) as bar,
          options.open(partial(start_evaluator, material, settings), len(units)) as workers):
        for _, records in fan_out(units, workers):
            bar.update(sum(len(r["scenes"]) for r in records))
            yield records
    raise_failed(workers.failed)


def read_records(path: Path, key: dict) -> list[dict]:
    """The records of an evaluation that was interrupted. Raises DitailError if its settings were others."""
    if not path.exists():
        return []
    try:
        kept = json.loads(path.read_text())
        before, records = kept["settings"], kept["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DitailError(f"{path}", f"can't be read as an evaluation's results ({error!r})") from error
    if before != key:
        changed = [k for k in key if before.get(k) != key[k]]
        raise DitailError(f"{path}", f"was made with other {' and '.join(changed)}; choose another folder")
    return records


def write_records(path: Path, key: dict, records: list[dict]) -> None:
    """Write what `read_records` reads, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(json.dumps({"settings": key, "records": records}))


def check_settings(settings: Settings, held_out: int) -> None:
    """Raise DitailError for a number that is out of range."""
    for name, most in (("scenes", held_out), ("steps", 999), ("thinning", settings.scenes)):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise DitailError(name, f"must be a whole number from 1 to {most}, got {value!r}")


def command(args: Namespace) -> None:
    """See `lab.cli.add_evaluate`."""
    for path in run(args.out, scenes=args.scenes, rows=args.rows, steps=args.steps, thinning=args.thinning,
                    options=Options.of(args)):
        print(path)


def run(out: Path, *, scenes: int = Settings.scenes, rows: str | None = None, steps: int = Settings.steps,
        thinning: int = Settings.thinning, progress: bool = True, material: Material | None = None,
        options: Options | None = None) -> list[Path]:
    """Run the evaluation, or what is left of it, into the folder `out`; the files written are returned.

    scenes: held-out scenes a direction. rows: parts of row names, comma-separated, to restrict it. thinning: the grid's
    rows take every such scene, at least one. Raises DitailError for a value out of range or a folder of other settings.
    """
    chosen = choose_rows(rows)
    material = material or load_material()
    settings = Settings(scenes, steps, min(thinning, scenes))
    check_settings(settings, len(material.captions))
    key = {**asdict(settings), "weights and scenes": material.digest()}
    make_folder(out, "--out")
    records = read_records(out / RESULTS, key)
    units = cut_into_units(chosen, material.styles, {(r["row"], r["source"], r["target"]) for r in records})
    for made in run_units(units, material, settings, progress, options or Options()) if units else ():
        fresh = {(r["row"], r["source"], r["target"]) for r in made}
        records = [r for r in records if (r["row"], r["source"], r["target"]) not in fresh] + made
        write_records(out / RESULTS, key, records)
    return report.write_report(out, all_rows(), records, settings)
