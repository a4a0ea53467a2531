"""Which alpha, beta and CFG scale burn the colours: `python -m lab.safe_region OUT.json`.

Measured on the demo checkpoints through the command line's host, in float32 on the CPU, 10 DDIM steps. The raw values
go to OUT.json, one record an image, and the tables to standard output; `--tables OUT.json` prints them again.
"""

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ditail.errors import DitailError
from ditail.images import picture_to_tensor
from ditail.latents import SourceLatents
from ditail.standalone import house
from ditail.standalone.commands import quiet
from ditail.standalone.model import Model, load_model
from ditail.standalone.pipeline import Job, generate, invert_with, transfer

STEPS = 10
SCENES = 2  # a direction, of its own: six directions make 12 images a cell
PLAIN_SCENES = 64
NEGATIVE = "blurry"
USUAL_CFG = 7.0  # the WebUI's default
USUAL_BETA = 0.5
ALPHAS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
BETAS = (0.0, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
CFGS = (0.0, 1.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)
CFG_ALPHAS = (1.0, 3.0, 6.0, 10.0)


def measure(images: Tensor) -> list[dict]:
    """Per image of `[b, 3, h, w]` in -1..1: the share of clipped pixels and the mean chroma, both 0..1.

    clipped: any channel is 0 or 255 in the saved image. chroma: largest minus smallest channel.
    """
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round()
    clipped = ((levels == 0) | (levels == 255)).any(1).float().mean((1, 2))
    chroma = (levels.amax(1) - levels.amin(1)).mean((1, 2)) / 255
    brightest = levels.amax((1, 2, 3))
    return [{"clipped": round(float(c), 5), "chroma": round(float(s), 5), "black": bool(b < 8)}
            for c, s, b in zip(clipped, chroma, brightest, strict=True)]


def decoded(model: Model, make, count: int) -> list[dict]:
    """The measures of `count` images whose latents `make()` gives; non-finite ones have `finite` false."""
    try:
        return [{"finite": True, **values} for values in measure(model.decode(make()))]
    except DitailError as error:
        if "finite" not in str(error):
            raise
        return [{"finite": False}] * count


def plain_records(models: dict[str, Model], scenes: house.Scenes) -> Iterator[dict]:
    for target, cfg in product(models, CFGS):
        count = PLAIN_SCENES if cfg == USUAL_CFG else 8
        for first in range(0, count, 8):
            chosen = range(first, first + 8)
            job = Job(tuple(scenes.captions[i] for i in chosen), NEGATIVE, tuple(chosen), STEPS, omega=cfg)
            found = decoded(models[target],
                            lambda m=models[target], j=job: generate(m, j, house.SIDE, house.SIDE)[0], 8)
            yield from ({"plain": True, "target": target, "cfg": cfg, **values} for values in found)


def ditail_records(models: dict[str, Model], scenes: house.Scenes) -> Iterator[dict]:
    cells = [(a, b, USUAL_CFG) for a, b in product(ALPHAS, BETAS)]
    cells += [(a, USUAL_BETA, c) for a, c in product(CFG_ALPHAS, CFGS) if c != USUAL_CFG]
    encoded = {}
    for alpha, beta in dict.fromkeys(cell[:2] for cell in cells):
        cfgs = [c for a, b, c in cells if (a, b) == (alpha, beta)]
        for number, source in enumerate(models):
            others = [style for style in models if style != source]
            # Each direction has scenes of its own; one inversion serves all targets and CFG scales of a scene.
            chosen = range(2 * SCENES * number, 2 * SCENES * (number + 1))
            job = Job(tuple(scenes.captions[i] for i in chosen), NEGATIVE, tuple(chosen), STEPS, alpha=alpha, beta=beta)
            if source not in encoded:
                pixels = torch.cat([picture_to_tensor(scenes.pictures[source][i]) for i in chosen])
                encoded[source] = models[source].encode(pixels)
            latents = invert_with(models[source], job, encoded[source])
            for target, cfg in product(others, cfgs):
                rows = slice(0, SCENES) if target == others[0] else slice(SCENES, 2 * SCENES)
                part = SourceLatents(latents.timesteps, latents.latents[:, rows], models[source].alphas_cumprod)
                here = job.with_(prompts=job.prompts[rows], seeds=job.seeds[rows], omega=cfg)
                found = decoded(models[target], lambda m=models[target], j=here, s=part: transfer(m, j, s), SCENES)
                yield from ({"plain": False, "alpha": alpha, "beta": beta, "cfg": cfg, "source": source,
                             "target": target, **values} for values in found)


def limits(records: list[dict]) -> dict[str, dict[str, float]]:
    """By target the 99th percentiles of the plain images at the usual CFG scale."""
    found = {}
    for target in dict.fromkeys(r["target"] for r in records):
        plain = [r for r in records if r["plain"] and r["target"] == target and r["cfg"] == USUAL_CFG]
        found[target] = {key: float(torch.tensor([r[key] for r in plain]).quantile(0.99))
                         for key in ("clipped", "chroma")}
    return found


def is_burnt(record: dict, limit: dict[str, dict[str, float]]) -> bool:
    """Black, or more clipped pixels or more chroma than the 99th percentile of the target's plain images."""
    own = limit[record["target"]]
    return record["black"] or record["clipped"] > own["clipped"] or record["chroma"] > own["chroma"]


def share(records: list[dict], limit: dict, **values) -> str:
    """`burnt %`, and the number of non-finite images behind it if there are any, of the records with these values."""
    chosen = [r for r in records if all(r.get(k) == v for k, v in values.items())]
    finite = [r for r in chosen if r["finite"]]
    burnt = f"{100 * sum(is_burnt(r, limit) for r in finite) / len(finite):.0f}" if finite else "-"
    return burnt + (f" ({len(chosen) - len(finite)} NaN)" if len(finite) < len(chosen) else "")


def tables(records: list[dict]) -> str:
    """Both tables as Markdown."""
    limit = limits(records)
    lines = [f"CFG scale {USUAL_CFG:g}: share of burnt images in per cent", ""]
    lines += ["| alpha \\ beta | " + " | ".join(f"{b:g}" for b in BETAS) + " |", "|---" * (len(BETAS) + 1) + "|"]
    for a in ALPHAS:
        cells = (share(records, limit, plain=False, alpha=a, beta=b, cfg=USUAL_CFG) for b in BETAS)
        lines.append(f"| {a:g} | " + " | ".join(cells) + " |")
    lines += ["", f"beta {USUAL_BETA:g}: share of burnt images in per cent", ""]
    lines += ["| CFG scale | plain | " + " | ".join(f"alpha {a:g}" for a in CFG_ALPHAS) + " |",
              "|---" * (len(CFG_ALPHAS) + 2) + "|"]
    for c in CFGS:
        cells = [share(records, limit, plain=True, cfg=c)]
        cells += [share(records, limit, plain=False, alpha=a, beta=USUAL_BETA, cfg=c) for a in CFG_ALPHAS]
        lines.append(f"| {c:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "--tables":
        print(tables(json.loads(Path(arguments[1]).read_text())))
        return 0
    quiet()
    models = {style: load_model(path) for style, path in house.checkpoints().items()}
    scenes = house.held_out()
    records = [*plain_records(models, scenes), *ditail_records(models, scenes)]
    Path(arguments[0]).write_text(json.dumps(records))
    print(tables(records))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
