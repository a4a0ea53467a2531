"""`python -m lab bench`: the cost of Ditail relative to plain generation, in FLOPs, time and memory."""

import contextlib
import platform
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ditail.content.images import LATENT_SCALE
from ditail.method.inversion import invert
from ditail.method.schedule import ddim_timesteps, scaled_linear_alphas_cumprod
from ditail.standalone.files import make_folder, whole_file
from ditail.standalone.model import default_device, default_dtype

from .counts import SD15, SDXL, Runs, Topology, build, flop_ratios
from .report import markdown_table, write_csv

WAYS = ("cold", "warm", "hot", "three chunks")
LABELS = {"cold": "cold: inversion + sampling", "warm": "warm: source latents cached",
          "hot": "hot: source features cached too", "three chunks": "three chunks, as the authors' code"}
COLOURS = {"cold": "#1f77b4", "warm": "#2ca02c", "hot": "#ff7f0e", "three chunks": "#999999"}
# (topology, side in pixels) whose FLOPs are counted.
COUNTED = ((SD15, 512), (SD15, 768), (SDXL, 1024))
BATCHES = (1, 4, 8)
# What is timed, by device. A CPU takes about a second for a row of 192 pixels; the total should be under ten minutes.
TIMED = {"cpu": (((SD15, 192),), (1, 4)), "cuda": (((SD15, 512), (SDXL, 1024)), BATCHES)}
MEMORY_STEPS = (2, 4, 8)


def command(args: Namespace) -> None:
    """Run `python -m lab bench` (options: `lab.cli.add_bench`)."""
    run(args.out, args.rounds, args.pixels)


def run(out: Path, rounds: int = 2, pixels: int | None = None, steps: int = 20) -> None:
    """Measure FLOPs, time and memory; write `bench.md`, `flops.csv`, `time.csv`, `memory.csv` and `bench.png` to `out`.

    rounds: how often each kind of step is timed. pixels: the side, a multiple of 64; None for that of TIMED.
    """
    make_folder(out, "--out")
    device = default_device()
    settings, batches = TIMED["cuda" if device.type == "cuda" else "cpu"]
    settings = [(topology, pixels or side) for topology, side in settings]
    timed, memory = [], []
    rows = len(COUNTED) + len(settings) * (len(batches) + 1)
    # ldm prints messages when a U-Net is built.
    with tqdm(total=rows, desc="bench", unit="row") as bar, contextlib.redirect_stdout(None):
        counted = [line for topology, side in COUNTED for line in _counted(topology, side, steps, bar)]
        for topology, side in settings:
            unet = build(topology, device, default_dtype(device))
            for batch in batches:
                timed.append(time_ratios(topology, unet, side, batch, rounds, steps))
                bar.update()
            memory += source_pass_memory(topology, unet, side)
            bar.update()
            del unet
    for name, lines in (("flops", counted), ("time", timed), ("memory", memory)):
        if lines:
            write_csv(out / f"{name}.csv", lines)
    with whole_file(out / "bench.md") as part:
        part.write_text(tables(counted, timed, memory, steps, rounds, device))
    plot(out / "bench.png", counted, timed, memory)
    print(out / "bench.md")


def _counted(topology: Topology, side: int, steps: int, bar: tqdm) -> list[dict]:
    lines = []
    for ratios in flop_ratios(topology, (side // LATENT_SCALE,) * 2, BATCHES, steps=steps):
        batch, plain = ratios.pop("batch"), ratios.pop("plain")
        lines.append({"model": topology.name, "pixels": side, "batch": batch, "plain_tflops": plain / 1e12, **ratios})
    bar.update()
    return lines


def time_ratios(topology: Topology, unet: nn.Module, side: int, batch: int, rounds: int, steps: int) -> dict:
    """Seconds of a plain evaluation and the ratio of each of WAYS, on the device of `unet`.

    Each round times every kind of step once, so that other load on the machine slows all of them. The fastest is used.
    """
    runs = Runs(topology, unet, (side // LATENT_SCALE,) * 2, batch, steps=steps)
    device = next(unet.parameters()).device
    kinds = runs.kinds()
    with _precision(unet):
        kinds["plain"]()
        timings = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, step in kinds.items():
                timings[kind].append(_seconds(step, device))
    seconds = {kind: min(values) for kind, values in timings.items()}
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
    """Peak memory of inversions above that before them, by number of steps; empty if it can't be measured."""
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
    """Reset the peak and return the bytes in use now; None if the system's peak can't be reset."""
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


def tables(counted: Sequence[dict], timed: Sequence[dict], memory: Sequence[dict], steps: int, rounds: int,
           device: torch.device) -> str:
    """The report in Markdown."""
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    text = [
        f"# Cost beside plain generation\n\n{steps} steps, 80 % with feature and 50 % with attention injection, CFG. "
        f"`python -m lab bench`, torch {torch.__version__}, {platform.machine()}, {machine}.\n",
        "\n## U-Net FLOPs, counted\n\n", _ratios(counted, "plain_tflops", "plain evaluation, TFLOP"),
        f"\n## Time, measured (fastest of {rounds})\n\n", _ratios(timed, "plain_seconds", "plain evaluation, s"),
    ]
    if memory:
        head = ["model", "pixels", "steps", "peak, MB", "latents kept, MB"]
        text += ["\n## Memory of the source pass, above the loaded model\n\n", markdown_table(head, [
            [m["model"], str(m["pixels"]), str(m["steps"]), f"{m['peak_mb']:.0f}", f"{m['latents_mb']:.2f}"]
            for m in memory])]
    text.append("\n![plot](bench.png)\n")
    return "".join(text)


def _ratios(lines: Sequence[dict], plain: str, plain_label: str) -> str:
    head = ["model", "pixels", "batch", plain_label, *WAYS]
    return markdown_table(head, [[line["model"], str(line["pixels"]), str(line["batch"]), f"{line[plain]:.3g}",
                                  *(f"{line[way]:.2f}" for way in WAYS)] for line in lines])


def plot(path: Path, counted: Sequence[dict], timed: Sequence[dict], memory: Sequence[dict]) -> None:
    """Write a PNG with FLOPs, time and memory side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5), width_ratios=(3, 2, 2))
    _bars(left, counted, "U-Net FLOPs / plain generation")
    _bars(middle, timed, "time / plain generation")
    for model, side in sorted({(m["model"], m["pixels"]) for m in memory}):
        points = [m for m in memory if (m["model"], m["pixels"]) == (model, side)]
        right.plot([p["steps"] for p in points], [p["peak_mb"] for p in points], "o-", label=f"{model}, {side} px")
    right.set(xlabel="steps", ylabel="MB above the loaded model", title="peak memory of the source pass")
    if memory:
        right.set_ylim(0, 1.25 * max(m["peak_mb"] for m in memory) or 1)
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
        positions = [x + (i - (len(WAYS) - 1) / 2) * width for x in range(len(lines))]
        axes.bar(positions, [line[way] for line in lines], width, color=COLOURS[way], label=LABELS[way])
    axes.axhline(1, color="black", linewidth=0.8)
    names = [f"{line['model']}\n{line['pixels']} px\nbatch {line['batch']}" for line in lines]
    axes.set_xticks(range(len(lines)), names, fontsize=7)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
