"""`python -m lab bench`: what Ditail costs beside plain generation, in FLOPs, time and memory."""

import contextlib
import platform
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ditail.images import LATENT_SCALE
from ditail.inversion import invert
from ditail.schedule import ddim_timesteps, scaled_linear_alphas_cumprod
from ditail.standalone.files import make_folder, whole_file
from ditail.standalone.model import default_device, default_dtype

from .counts import SD15, SDXL, Runs, Topology, build, flop_ratios
from .report import markdown_table, write_csv

WAYS = ("cold", "warm", "hot", "three chunks")
LABELS = {"cold": "cold: inversion + sampling", "warm": "warm: source latents cached",
          "hot": "hot: source features cached too", "three chunks": "three chunks, as the authors' code"}
COLOURS = {"cold": "#1f77b4", "warm": "#2ca02c", "hot": "#ff7f0e", "three chunks": "#999999"}
# Topology and side in pixels.
COUNTED = ((SD15, 512), (SD15, 768), (SDXL, 1024))
BATCHES = (1, 4, 8)
# A CPU takes about a second for a row of 192 pixels, and all of it has to end within ten minutes.
TIMED = {"cpu": (((SD15, 192),), (1, 4)), "cuda": (((SD15, 512), (SDXL, 1024)), BATCHES)}
MEMORY_STEPS = (2, 4, 8)


def command(args: Namespace) -> None:
    """See `lab.cli.add_bench`."""
    run(args.out, args.rounds, args.pixels)


def run(out: Path, rounds: int = 2, pixels: int | None = None, steps: int = 20) -> None:
    """Count, time and weigh; write `bench.md`, `flops.csv`, `time.csv`, `memory.csv` and `bench.png` into `out`.

    rounds: how often each kind of step is timed. pixels: another side than `TIMED`'s, a multiple of 64.
    """
    make_folder(out, "--out")
    device = default_device()
    places, batches = TIMED["cuda" if device.type == "cuda" else "cpu"]
    places = [(topology, pixels or side) for topology, side in places]
    timed, weighed = [], []
    rows = len(COUNTED) + len(places) * (len(batches) + 1)
    # ldm prints as it builds.
    with tqdm(total=rows, desc="bench", unit="row") as bar, contextlib.redirect_stdout(None):
        counted = [line for topology, side in COUNTED for line in _counted(topology, side, steps, bar)]
        for topology, side in places:
            unet = build(topology, device, default_dtype(device))
            for batch in batches:
                timed.append(time_ratios(topology, unet, side, batch, rounds, steps))
                bar.update()
            weighed += source_pass_memory(topology, unet, side)
            bar.update()
            del unet
    for name, lines in (("flops", counted), ("time", timed), ("memory", weighed)):
        if lines:
            write_csv(out / f"{name}.csv", lines)
    with whole_file(out / "bench.md") as part:
        part.write_text(tables(counted, timed, weighed, steps, rounds, device))
    plot(out / "bench.png", counted, timed, weighed)
    print(out / "bench.md")


def _counted(topology: Topology, side: int, steps: int, bar: tqdm) -> list[dict]:
    lines = []
    for ratios in flop_ratios(topology, (side // LATENT_SCALE,) * 2, BATCHES, steps=steps):
        batch, plain = ratios.pop("batch"), ratios.pop("plain")
        lines.append({"model": topology.name, "pixels": side, "batch": batch, "plain_tflops": plain / 1e12, **ratios})
    bar.update()
    return lines


def time_ratios(topology: Topology, unet: nn.Module, side: int, batch: int, rounds: int, steps: int) -> dict:
    """Seconds of a plain evaluation and every way's ratio, on the device of `unet`.

    Every kind of step is timed once a round, in turn, so that a busy machine slows all of them; the fastest counts.
    """
    runs = Runs(topology, unet, (side // LATENT_SCALE,) * 2, batch, steps=steps)
    device = next(unet.parameters()).device
    kinds = runs.kinds()
    with _precision(unet):
        kinds["plain"]()
        taken = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, step in kinds.items():
                taken[kind].append(_seconds(step, device))
    seconds = {kind: min(values) for kind, values in taken.items()}
    return {"model": topology.name, "pixels": side, "batch": batch, "plain_seconds": seconds["plain"],
            **runs.ratios(seconds)}


def _precision(unet: nn.Module):
    weight = next(unet.parameters())
    if weight.dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(weight.device.type, weight.dtype)


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def source_pass_memory(topology: Topology, unet: nn.Module, side: int) -> list[dict]:
    """Peak memory of an inversion above what is held before it, by its number of steps; none where it can't be seen."""
    device, latent = next(unet.parameters()).device, side // LATENT_SCALE
    abar = scaled_linear_alphas_cumprod()
    context = Runs(topology, unet, (latent, latent), 1).arguments(1)

    def eps(z, t):
        return unet(z.to(context["context"]), torch.full((1,), int(t), device=device), **context)

    lines = []
    with _precision(unet):
        for steps in (MEMORY_STEPS[0], *MEMORY_STEPS):  # the first run fills the allocator's caches
            before = _reset_peak(device)
            if before is None:
                return []
            invert(eps, torch.zeros(1, 4, latent, latent, device=device), ddim_timesteps(steps), abar)
            lines.append({"model": topology.name, "pixels": side, "steps": steps,
                          "peak_mb": (_peak(device) - before) / 2**20,
                          "latents_mb": steps * 4 * latent**2 * 4 / 2**20})
    return lines[1:]


def _reset_peak(device: torch.device) -> int | None:
    """Bytes in use now, from where the peak is counted; None where the system tells no peak that can be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _process_bytes("VmRSS")
    except OSError:
        return None


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _process_bytes("VmHWM")


def _process_bytes(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def tables(counted: Sequence[dict], timed: Sequence[dict], weighed: Sequence[dict], steps: int, rounds: int,
           device: torch.device) -> str:
    """The report in Markdown."""
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    text = [
        f"# Cost beside plain generation\n\n{steps} steps, 80 % with feature and 50 % with attention injection, CFG. "
        f"`python -m lab bench`, torch {torch.__version__}, {platform.machine()}, {where}.\n",
        "\n## U-Net FLOPs, counted\n\n", _ratios(counted, "plain_tflops", "plain evaluation, TFLOP"),
        f"\n## Time, measured (fastest of {rounds})\n\n", _ratios(timed, "plain_seconds", "plain evaluation, s"),
    ]
    if weighed:
        head = ["model", "pixels", "steps", "peak, MB", "latents kept, MB"]
        text += ["\n## Memory of the source pass, above the loaded model\n\n", markdown_table(head, [
            [w["model"], str(w["pixels"]), str(w["steps"]), f"{w['peak_mb']:.0f}", f"{w['latents_mb']:.2f}"]
            for w in weighed])]
    text.append("\n![plot](bench.png)\n")
    return "".join(text)


def _ratios(lines: Sequence[dict], plain: str, plain_label: str) -> str:
    head = ["model", "pixels", "batch", plain_label, *WAYS]
    return markdown_table(head, [[line["model"], str(line["pixels"]), str(line["batch"]), f"{line[plain]:.3g}",
                                  *(f"{line[way]:.2f}" for way in WAYS)] for line in lines])


def plot(path: Path, counted: Sequence[dict], timed: Sequence[dict], weighed: Sequence[dict]) -> None:
    """FLOPs, time and memory side by side, one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5), width_ratios=(3, 2, 2))
    _bars(left, counted, "U-Net FLOPs / plain generation")
    _bars(middle, timed, "time / plain generation")
    for model, side in sorted({(w["model"], w["pixels"]) for w in weighed}):
        own = [w for w in weighed if (w["model"], w["pixels"]) == (model, side)]
        right.plot([w["steps"] for w in own], [w["peak_mb"] for w in own], "o-", label=f"{model}, {side} px")
    right.set(xlabel="steps", ylabel="MB above the loaded model", title="peak memory of the source pass")
    if weighed:
        right.set_ylim(0, 1.25 * max(w["peak_mb"] for w in weighed) or 1)
        right.legend(frameon=False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    with whole_file(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def _bars(axes, lines: Sequence[dict], title: str) -> None:
    width = 0.8 / len(WAYS)
    for i, way in enumerate(WAYS):
        places = [x + (i - (len(WAYS) - 1) / 2) * width for x in range(len(lines))]
        axes.bar(places, [line[way] for line in lines], width, color=COLOURS[way], label=LABELS[way])
    axes.axhline(1, color="black", linewidth=0.8)
    names = [f"{line['model']}\n{line['pixels']} px\nbatch {line['batch']}" for line in lines]
    axes.set_xticks(range(len(lines)), names, fontsize=7)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
