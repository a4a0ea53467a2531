"""Which alpha, beta and CFG scale burn the colours: `python -m lab.safe_region OUT.jsonl`.

Measured on the demo checkpoints with 10 DDIM steps and bf16 autocast on the CPU. OUT.jsonl gets one record per image,
and a second run continues it. At the end the tables are printed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ditail.content.images import image_to_tensor
from ditail.content.settings import DitailSettings
from ditail.errors import DitailError
from ditail.method.inversion import combine_conds, invert
from ditail.method.latents import SourceLatents
from ditail.standalone import demo_checkpoints
from ditail.standalone.model import load_model, quiet
from ditail.standalone.options import Parser
from ditail.standalone.sampling import SamplingJob, generate, new_sampler

from . import methods
from .precision import autocast

STEPS = 10
BATCH = 8
PLAIN_SCENES = 32
NEGATIVE = "blurry"
CLIPPED_MORE = 0.25
USUAL_CFG = 7.0  # the WebUI's default
USUAL_BETA = 0.5
ALPHAS = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
BETAS = (0.0, 0.5, 1.0, 3.0, 6.0, 10.0)
CFGS = (0.0, 1.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)
CFG_ALPHAS = (1.0, 3.0, 6.0, 10.0)


@dataclass(frozen=True)
class Image:
    """An image to generate: a scene of the source style in the target's, or (source "") plain generation."""

    scene: int
    source: str
    target: str
    cfg: float
    alpha: float = 0.0
    beta: float = 0.0


def plan() -> list[Image]:
    """All images, sorted by source, target and CFG scale; each direction has one scene."""
    plain = [Image(scene, "", target, cfg) for target, cfg in product(demo_checkpoints.STYLES, CFGS)
             for scene in range(PLAIN_SCENES if cfg == USUAL_CFG else BATCH)]
    directions = [(s, t) for s, t in product(demo_checkpoints.STYLES, demo_checkpoints.STYLES) if s != t]
    cells = [(USUAL_CFG, a, b) for a, b in product(ALPHAS, BETAS)]
    cells += [(c, a, USUAL_BETA) for c, a in product(CFGS, CFG_ALPHAS) if c != USUAL_CFG or a not in ALPHAS]
    mixed = [Image(number, source, target, *cell) for number, (source, target) in enumerate(directions)
             for cell in cells]
    return plain + sorted(mixed, key=lambda i: (i.source, i.target, i.cfg))


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


class Generator:
    """Generates and measures images with the demo checkpoints."""

    def __init__(self):
        self.models = {style: load_model(path) for style, path in demo_checkpoints.paths().items()}
        self.scenes = demo_checkpoints.held_out()

    def records(self, images: Sequence[Image]) -> list[dict]:
        """The records of images with the same source, target and CFG scale."""
        try:
            with torch.no_grad(), autocast():
                pixels = self.models[images[0].target].decode(self.latents(images))
        except DitailError as error:
            if "finite" not in str(error):
                raise
            # One image that is not finite raises for its whole batch.
            return [asdict(images[0]) | {"finite": False}] if len(images) == 1 else [
                record for image in images for record in self.records([image])]
        return [asdict(image) | {"finite": True} | values
                for image, values in zip(images, measure(pixels), strict=True)]

    def latents(self, images: Sequence[Image]) -> Tensor:
        first, target = images[0], self.models[images[0].target]
        prompts = tuple(self.scenes.captions[image.scene] for image in images)
        job = SamplingJob(prompts, NEGATIVE, tuple(image.scene for image in images), STEPS, omega=first.cfg)
        if not first.source:
            return generate(target, job, demo_checkpoints.SIDE, demo_checkpoints.SIDE)[0]
        source = self.source_latents(job, images)
        return methods.ditail(target, job, DitailSettings(), source, source.z0)

    def source_latents(self, job: SamplingJob, images: Sequence[Image]) -> SourceLatents:
        model = self.models[images[0].source]
        held_out = self.scenes.images[images[0].source]
        z0 = model.encode(torch.cat([image_to_tensor(held_out[image.scene]) for image in images]))
        positive, negative = model.encode_prompts(job.prompts), model.encode_prompts([NEGATIVE])
        context = torch.cat([combine_conds(image.alpha, positive[i : i + 1], image.beta, negative)
                             for i, image in enumerate(images)])
        return invert(lambda z, t: model.eps(z, t, context), z0, new_sampler(model, job).timesteps,
                      model.alphas_cumprod)


def batches(images: Sequence[Image]) -> Iterator[list[Image]]:
    groups = {}
    for image in images:
        groups.setdefault((image.source, image.target, image.cfg), []).append(image)
    for group in groups.values():
        yield from (group[i : i + BATCH] for i in range(0, len(group), BATCH))


def complete_records(path: Path) -> list[dict]:
    """All records; those that `path` lacks are generated and appended to it."""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {Image(**{key: record[key] for key in Image.__annotations__}) for record in records}
    missing = [image for image in plan() if image not in done]
    generator = Generator() if missing else None
    for batch in batches(missing):
        new = generator.records(batch)
        records += new
        with path.open("a") as out:
            out.writelines(json.dumps(record) + "\n" for record in new)
    return records


def over_plain(records: Sequence[dict]) -> list[bool]:
    """Whether each image is burnt compared with plain ones: black, or its clipped share or chroma is above the 99th
    percentile of the target's plain images at the usual CFG scale."""
    limits = {(style, key): _quantile([r[key] for r in records if not r["source"] and r["finite"] and
                                       (r["target"], r["cfg"]) == (style, USUAL_CFG)])
              for style, key in product(demo_checkpoints.STYLES, ("clipped", "chroma"))}
    return [r["finite"] and (r["black"] or any(r[key] > limits[r["target"], key] for key in ("clipped", "chroma")))
            for r in records]


def over_true(records: Sequence[dict]) -> list[bool]:
    """Whether each image is burnt compared with true ones: black, or its clipped share is over CLIPPED_MORE above that
    of the scene's true image in the target style, or its chroma is above the 99th percentile of that style's."""
    true = {(style, number): measure(image_to_tensor(image))[0]
            for style, images in demo_checkpoints.held_out().images.items() for number, image in enumerate(images)}
    limits = {style: _quantile([m["chroma"] for (s, _), m in true.items() if s == style])
              for style in demo_checkpoints.STYLES}
    return [r["finite"] and (r["black"] or r["chroma"] > limits[r["target"]] or
                             r["clipped"] > true[r["target"], r["scene"]]["clipped"] + CLIPPED_MORE) for r in records]


def _quantile(values: Sequence[float]) -> float:
    return float(torch.tensor(values).quantile(0.99))


def burnt_share(records: Sequence[dict], condition: Callable[[dict], bool]) -> str:
    """Burnt images in per cent of the finite ones that meet a condition, and the number that is not finite."""
    chosen = [record for record in records if condition(record)]
    finite = [record for record in chosen if record["finite"]]
    burnt = f"{100 * sum(record['burnt'] for record in finite) / len(finite):.0f}" if finite else "-"
    return burnt + (f" ({len(chosen) - len(finite)} not finite)" if len(finite) < len(chosen) else "")


def tables(records: Sequence[dict]) -> str:
    """All tables as Markdown, for both definitions of burnt images."""
    parts = []
    for name, judge in (("plain images", over_plain), ("true images", over_true)):
        judged = [r | {"burnt": burnt} for r, burnt in zip(records, judge(records), strict=True)]
        parts += [f"Burnt by the measure of {name}, per cent, CFG scale {USUAL_CFG:g}:", "", _alpha_table(judged), "",
                  f"Burnt by the measure of {name}, per cent, beta {USUAL_BETA:g}:", "", _cfg_table(judged), ""]
    return "\n".join(parts)


def _alpha_table(records: Sequence[dict]) -> str:
    lines = ["| alpha | " + " | ".join(f"beta {b:g}" for b in BETAS) + " | all |", "|---" * (len(BETAS) + 2) + "|"]
    mixed = [r for r in records if r["source"] and r["cfg"] == USUAL_CFG and r["beta"] in BETAS]
    for a in ALPHAS:
        cells = [burnt_share(mixed, lambda r, a=a, b=b: (r["alpha"], r["beta"]) == (a, b)) for b in BETAS]
        lines.append(f"| {a:g} | " + " | ".join([*cells, burnt_share(mixed, lambda r, a=a: r["alpha"] == a)]) + " |")
    return "\n".join(lines)


def _cfg_table(records: Sequence[dict]) -> str:
    lines = ["| CFG scale | plain | " + " | ".join(f"alpha {a:g}" for a in CFG_ALPHAS) + " | all alphas |",
             "|---" * (len(CFG_ALPHAS) + 3) + "|"]
    for c in CFGS:
        of_scale = [r for r in records if r["cfg"] == c]
        mixed = [r for r in of_scale if r["source"] and r["beta"] == USUAL_BETA and r["alpha"] in CFG_ALPHAS]
        cells = [burnt_share(of_scale, lambda r: not r["source"])]
        cells += [burnt_share(mixed, lambda r, a=a: r["alpha"] == a) for a in CFG_ALPHAS]
        cells.append(burnt_share(mixed, lambda _: True))
        lines.append(f"| {c:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Generate the images that the file lacks, and print the tables."""
    parser = Parser(prog="python -m lab.safe_region", description="Measure which alpha, beta and CFG scale burn the "
                    "colours on the demo checkpoints, and print the tables of docs/reliability-numbers.md.")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl", help="gets one record per image; a second run continues "
                        "it")
    args = parser.parse_args(argv)
    quiet()
    print(tables(complete_records(args.out)))


if __name__ == "__main__":
    main()
