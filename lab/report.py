"""The evaluation's tables (CSV and Markdown) and its plot."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ditail.standalone.files import whole_file

METRICS = {
    "edge_f1": "edge F1", "iou": "foreground IoU", "style": "target style, probability",
    "style_share": "target style, share", "l1": "L1 to the truth", "ssim": "SSIM to the truth",
}
SETTINGS = ("method", "alpha", "beta", "omega", "strength")
COLOURS = {"plain generation": "#d62728", "img2img": "#ff7f0e", "Ditail without inversion": "#9467bd",
           "inverted start, no injection": "#2ca02c", "Ditail": "#1f77b4"}
MARKERS = {0.0: "o", 0.5: "s", 1.0: "^"}
REFERENCES = {"true target image": "*", "true target through the VAE": "P", "content through the VAE": "X"}
REFERENCE_COLOUR = "#555555"


def summarise(row, records: Iterable[dict]) -> dict | None:
    """The row's settings with the mean and its standard error for every metric over all images of `records`."""
    own = [r for r in records if r["row"] == row.name]
    if not own:
        return None
    line = {"row": row.name, **{key: getattr(row, key) for key in SETTINGS}}
    line["images"] = sum(len(r["scenes"]) for r in own)
    for name in METRICS:
        values = np.array([v for r in own for v in r[name]])
        line[name] = values.mean()
        line[f"{name}_error"] = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return line


def directions(rows: Sequence, records: Sequence[dict]) -> list[dict]:
    """One summary for each row and direction, in the order of the records' styles."""
    pairs = sorted({(r["source"], r["target"]) for r in records})
    lines = []
    for row in rows:
        for source, target in pairs:
            own = [r for r in records if (r["source"], r["target"]) == (source, target)]
            if line := summarise(row, own):
                lines.append({"direction": f"{source} to {target}", **line})
    return lines


def write_csv(path: Path, lines: Sequence[dict]) -> None:
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        for line in lines:
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main_table(lines: Sequence[dict]) -> str:
    """Every metric of each row over all directions: mean and standard error."""
    body = [[line["row"], str(line["images"]), *(f"{line[m]:.3f} ±{line[f'{m}_error']:.3f}" for m in METRICS)]
            for line in lines]
    return markdown_table(["", "images", *METRICS.values()], body)


def direction_table(lines: Sequence[dict]) -> str:
    """Structure and style of each row in each direction: "edge F1 / probability of the target style"."""
    names, rows = list(dict.fromkeys(d["direction"] for d in lines)), list(dict.fromkeys(d["row"] for d in lines))
    cells = {(d["row"], d["direction"]): f"{d['edge_f1']:.2f} / {d['style']:.2f}" for d in lines}
    return markdown_table(["", *names], [[row, *(cells.get((row, n), "") for n in names)] for row in rows])


def equal_style_table(lines: Sequence[dict]) -> str:
    """For each img2img row and direction, its edge F1 and the best of the Ditail rows with no less target style."""
    names, body = list(dict.fromkeys(d["direction"] for d in lines)), {}
    for line in (d for d in lines if d["method"] == "img2img"):
        rivals = [d["edge_f1"] for d in lines if d["method"] == "Ditail" and d["direction"] == line["direction"]
                  and d["style"] >= line["style"]]
        cell = f"{line['edge_f1']:.2f} / {max(rivals):.2f}" if rivals else f"{line['edge_f1']:.2f} / none"
        body.setdefault(line["row"], {})[line["direction"]] = cell
    return markdown_table(["", *names], [[row, *(cells.get(n, "") for n in names)] for row, cells in body.items()])


def markdown(settings, lines: Sequence[dict], by_direction: Sequence[dict]) -> str:
    """The report; `settings` are the evaluation's."""
    thinned = "" if settings.thinning == 1 else (
        f"; rows with fewer images take one scene in {settings.thinning}, others for each content style")
    report = (
        f"{settings.scenes} held-out scenes in each direction, {settings.steps} DDIM steps{thinned}. Mean ± standard "
        "error over the images. Structure is measured against the content image, style by the classifier, "
        "distance against the true image in the target style. The row of the true target images says how like "
        "the content the truth is, and how often the classifier is right.\n\n"
        f"{main_table(lines)}\nEach direction: edge F1 / probability of the target style.\n\n"
        f"{direction_table(by_direction)}"
    )
    if {"img2img", "Ditail"} <= {line["method"] for line in lines}:
        report += ("\nStructure at equal style: edge F1 of img2img / of the Ditail row that has the most among those "
                   "with at least as much of the target style.\n\n" + equal_style_table(by_direction))
    return report


def draw_line(axes, points: Sequence[dict], label: str, marker: str, key: str) -> None:
    """Points of one method joined in the order of `key`, whose value stands beside each."""
    points = sorted(points, key=lambda p: p[key] or 0)
    colour = COLOURS[points[0]["method"]]
    x, y = [p["style"] for p in points], [p["edge_f1"] for p in points]
    axes.plot(x, y, marker=marker, color=colour, label=label, markersize=7, linewidth=1, alpha=0.9)
    for p in points:
        if p[key] is not None:
            axes.annotate(f"{p[key]:g}", (p["style"], p["edge_f1"]), (5, 4), textcoords="offset points", fontsize=8,
                          color=colour)


def draw_panel(axes, lines: Sequence[dict], omega: float) -> None:
    """One CFG scale: every method's structure over its style, and the truth's."""
    own = [line for line in lines if line["omega"] == omega and line["method"] in COLOURS]
    for method in COLOURS:
        points = [p for p in own if p["method"] == method]
        if method == "Ditail":
            for beta, marker in MARKERS.items():
                if some := [p for p in points if p["beta"] == beta]:
                    draw_line(axes, some, f"Ditail, beta {beta:g} (number: alpha)", marker, "alpha")
        elif points:
            label = f"{method} (number: denoising)" if method == "img2img" else method
            draw_line(axes, points, label, "D", "strength")
    for p in lines:
        if p["method"] in REFERENCES:
            axes.plot(p["style"], p["edge_f1"], REFERENCES[p["method"]], color=REFERENCE_COLOUR, markersize=9,
                      linestyle="", label=p["method"])
    title = "" if omega is None else f"CFG scale (omega) {omega:g}"
    axes.set(title=title, xlabel="style: probability of the target style", xlim=(-0.03, 1.03))
    axes.grid(alpha=0.25)


def write_plot(path: Path, lines: Sequence[dict], title: str) -> None:
    """Structure over style, one panel a CFG scale, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    omegas = sorted({line["omega"] for line in lines} - {None}) or [None]
    figure, panels = pyplot.subplots(1, len(omegas), figsize=(7 * len(omegas), 7), sharey=True, squeeze=False)
    for axes, omega in zip(panels[0], omegas, strict=True):
        draw_panel(axes, lines, omega)
    panels[0][0].set_ylabel("structure: edge F1 against the content image")
    handles, labels = panels[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=9, frameon=False)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")
    pyplot.close(figure)


def write_report(folder: Path, rows: Sequence, records: Sequence[dict], settings) -> list[Path]:
    """Write `table.csv`, `directions.csv`, `table.md` and `plot.png` below `folder`; their paths are returned."""
    lines = [line for row in rows if (line := summarise(row, records))]
    by_direction = directions(rows, records)
    paths = [folder / name for name in ("table.csv", "directions.csv", "table.md", "plot.png")]
    write_csv(paths[0], lines)
    write_csv(paths[1], by_direction)
    with whole_file(paths[2]) as part:
        part.write_text(markdown(settings, lines, by_direction), encoding="utf-8")
    write_plot(paths[3], lines, f"Structure over style, {settings.scenes} held-out scenes in each of "
                                f"{len({d['direction'] for d in by_direction})} directions, {settings.steps} steps")
    return paths
