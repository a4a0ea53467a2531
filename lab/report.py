"""The evaluation's tables (CSV and Markdown) and its plot, and pasting them into a page."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ditail.errors import DitailError
from ditail.standalone.files import whole_file

from . import compare, costs
from .compare import STRUCTURE, STYLE, Difference, Direction, Scores
from .rows import (
    BY_STEPS,
    DDIB,
    DIFFSTYLER,
    DRAFT,
    GENERATED,
    IMG2IMG,
    MAIN,
    OURS,
    PAPER,
    PAPER_CFG_3,
    PNP,
    TRIED,
    TRUTH,
    Row,
)

METRICS = {"style": "style", "edge_f1": "edge F1", "distance": "self-similarity distance", "l1": "L1 to the truth"}
RIVALS = (IMG2IMG, DDIB, PNP, DIFFSTYLER, PAPER, PAPER_CFG_3)
PRESET_ROWS = ("Balanced", "Structure", "Style", "Draft")
COLOURS = {IMG2IMG: "#ff7f0e", DDIB: "#2ca02c", PNP: "#9467bd", DIFFSTYLER: "#8c564b",
           PAPER: "#1f77b4", PAPER_CFG_3: "#17becf", OURS: "#e377c2", DRAFT: "#7f7f7f"}
REFERENCE_MARKERS = {TRUTH: "*"}
FILES = ("rows.csv", "tables.md", "plot.png")
XLIM, YLIM = (0.45, 1.01), (0.45, 0.85)
BLOCK = "<!-- {} -->\n"


class Results:
    """The records of an evaluation, with what is complete in every direction."""

    def __init__(self, rows: Sequence[Row], records: Sequence[dict]):
        self.records = records
        self.directions: list[Direction] = sorted({(r["source"], r["target"]) for r in records})
        self.scores = Scores(records)
        self.rows = [row for row in rows if self.scores.common_scenes([row.name], self.directions)]
        # The rows of a table are means over the same scenes.
        self.scenes = {table: self.scores.common_scenes([row.name for row in self.of(table)], self.directions)
                       for table in {row.table for row in self.rows}}

    def of(self, table: str) -> list[Row]:
        return [row for row in self.rows if row.table == table]

    def curve(self, name: str) -> list[str]:
        """The names of a method's rows in the order of their knob."""
        return [row.name for row in sorted(self.of(MAIN), key=lambda row: row.value) if row.curve == name]

    def lines(self, row: Row) -> list[dict]:
        """A summary for each direction, then one over all of them; on the scenes of the row's table."""
        lines, scenes = [], set(self.scenes[row.table])
        every: dict[str, list[float]] = {}
        for direction in self.directions:
            records = [r for r in self.records if r["row"] == row.name and (r["source"], r["target"]) == direction]
            values = {name: [v for r in records if name in r for v, scene in zip(r[name], r["scenes"], strict=True)
                             if scene in scenes] for name in METRICS}
            lines.append(_summary(row, " to ".join(direction), values))
            for name, column in values.items():
                every.setdefault(name, []).extend(column)
        return [*lines, _summary(row, "all", every)]


def _summary(row: Row, direction: str, values: Mapping[str, Sequence[float]]) -> dict:
    line: dict = {"row": row.name, "curve": row.curve, "table": row.table, "steps": row.steps, "CFG": row.omega,
                  "direction": direction, "images": len(values["style"])}
    for name, column in values.items():
        array = np.array(column or [np.nan])
        line[name] = float(array.mean())
        line[f"{name}_error"] = float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else float("nan")
    return line


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; empty without a body."""
    body = list(body)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body] if body else []
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rows_table(results: Results, table: str) -> str:
    """Every metric of each row over all directions: mean and standard error; and its cost."""
    body = []
    for row in results.of(table):
        line, cost = results.lines(row)[-1], costs.row_cost(row)
        cells = [f"{line[m]:.{_digits(m)}f} ±{line[f'{m}_error']:.{_digits(m)}f}" if line[m] == line[m] else ""
                 for m in METRICS]
        body.append([row.name, str(len(results.scenes[table])), "" if cost is None else f"{cost:.2f}", *cells])
    return markdown_table(["", "scenes", "FLOPs", *METRICS.values()], body)


def _digits(metric: str) -> int:
    return 1 if metric == "distance" else 3


def direction_table(results: Results, table: str) -> str:
    """Edge F1 / style of each row in each direction."""
    body = [[row.name, *(f"{line['edge_f1']:.2f} / {line['style']:.2f}" for line in results.lines(row)[:-1])]
            for row in results.of(table)]
    return markdown_table(["", *(" to ".join(d) for d in results.directions)], body)


def shown(difference: Difference, *, most: bool = False) -> str:
    """`+0.05 [+0.03, +0.07]`; bold where that excludes 0. most: a bound is one from above, else from below."""
    sign = ("≤ " if most else "≥ ") if difference.is_bound else ""
    text = f"{sign}{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    is_ahead, is_behind = difference.low > 0, difference.high < 0
    if difference.is_bound:
        return f"**{text}**" if (is_behind if most else is_ahead) else text
    return f"**{text}**" if is_ahead or is_behind else text


def presets_table(results: Results) -> str:
    """Each preset against each rival's curve, mean of the directions."""
    body = []
    for row, rival, curve in _pairs(results):
        at_style, at_structure = (
            compare.point_against_curve(results.scores, row, curve, results.directions, along)
            for along in (STYLE, STRUCTURE))
        scenes = results.scores.common_scenes([row, *curve], results.directions)
        if scenes:
            body.append([f"{row} - {rival}", str(len(scenes)), shown(at_style[-1]), shown(at_structure[-1])])
    return markdown_table(["", "scenes", "edge F1 at equal style", "style at equal edge F1"], body)


def _pairs(results: Results) -> Iterable[tuple[str, str, list[str]]]:
    there = {row.name for row in results.of(MAIN)}
    return [(row, rival, curve) for row in PRESET_ROWS if row in there for rival in RIVALS
            if (curve := results.curve(rival))]


def balanced_table(results: Results, along: int) -> str:
    """Balanced against each rival's curve in each direction."""
    body = []
    for row, rival, curve in _pairs(results):
        differences = compare.point_against_curve(results.scores, row, curve, results.directions, along)
        if row == "Balanced" and differences:
            body.append([rival, *map(shown, differences[:-1])])
    return markdown_table(["Balanced -", *(" to ".join(d) for d in results.directions)], body)


def img2img_table(results: Results) -> str:
    """The curve through Style, Balanced and Structure beside each row of img2img at that row's style."""
    body = []
    for rival in results.curve(IMG2IMG):
        differences = compare.curve_against_point(results.scores, results.curve(OURS), rival, results.directions, STYLE)
        if differences:
            body.append([f"ours - {rival}", *(shown(d, most=True) for d in differences)])
    return markdown_table(["edge F1 at equal style", *(" to ".join(d) for d in results.directions), "mean"], body)


def costs_table(preset_costs: Mapping[str, Mapping[str, float]]) -> str:
    body = [[name, *(f"{cost[kind]:.2f}" for kind in ("cold", "warm", "hot"))] for name, cost in preset_costs.items()]
    return markdown_table(["preset", "cold", "warm", "hot"], body)


def tables(results: Results) -> dict[str, str]:
    """Every table that has a row, by the name of its place in the page."""
    every = {
        "presets' cost": costs_table(costs.preset_costs()),
        "rows": rows_table(results, MAIN),
        "presets": presets_table(results),
        "Balanced at equal style": balanced_table(results, STYLE),
        "Balanced at equal structure": balanced_table(results, STRUCTURE),
        "img2img": img2img_table(results),
        "directions": direction_table(results, MAIN),
        "generated": rows_table(results, GENERATED),
        "generated by direction": direction_table(results, GENERATED),
        "steps": rows_table(results, BY_STEPS),
        "steps by direction": direction_table(results, BY_STEPS),
        "tried": rows_table(results, TRIED),
        "tried by direction": direction_table(results, TRIED),
    }
    return {name: table for name, table in every.items() if table}


def paste(page: str, blocks: Mapping[str, str]) -> str:
    """`page` with the table after each mark `<!-- name -->` replaced. Raises DitailError for a mark that it lacks."""
    for name, table in blocks.items():
        mark = BLOCK.format(name)
        if mark not in page:
            raise DitailError("page", f"has no line {mark.strip()}")
        page = re.sub(re.escape(mark) + r"(?:\|[^\n]*\n)*", lambda _, text=mark + table: text, page)
    return page


def paste_into(path: Path, blocks: Mapping[str, str]) -> None:
    """See `paste`."""
    text = paste(path.read_text(encoding="utf-8"), blocks)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_csv(path: Path, lines: Sequence[dict]) -> None:
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        for line in lines:
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})


def draw_panel(axes, results: Results, place: int) -> None:
    """One direction's curves, or, for the last place, their mean's."""
    lines = {row.name: results.lines(row)[place] for row in results.of(MAIN)}
    for row in results.of(MAIN):
        if row.curve in REFERENCE_MARKERS:
            axes.plot(lines[row.name]["style"], lines[row.name]["edge_f1"], REFERENCE_MARKERS[row.curve],
                      color="#555555", linestyle="", label=row.curve)
    for curve, colour in COLOURS.items():
        points = [lines[name] for name in results.curve(curve)]
        if points:
            axes.plot([p["style"] for p in points], [p["edge_f1"] for p in points], "o-", color=colour, label=curve,
                      markersize=5, linewidth=2 if curve == OURS else 1.2)
    axes.grid(alpha=0.25)


def write_plot(path: Path, results: Results) -> None:
    """Structure over style: the mean of the directions, large, and each direction, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(13, 8))
    grid = figure.add_gridspec(2, 5, width_ratios=(1.35, 1.35, 1, 1, 1))
    large = figure.add_subplot(grid[:, :2])
    draw_panel(large, results, -1)
    # Plain generation and the content itself are far outside.
    large.set(title=f"mean of the directions, {len(results.scenes[MAIN])} scenes each",
              xlabel="style: probability of the target style",
              ylabel="structure: edge F1 against the content image", xlim=XLIM, ylim=YLIM)
    for row in results.of(MAIN):
        line = results.lines(row)[-1]
        if row.name in PRESET_ROWS or row.curve in (IMG2IMG, PAPER):
            large.annotate(row.name.removeprefix(f"{row.curve} "), (line["style"], line["edge_f1"]), (4, 4),
                           textcoords="offset points", fontsize=8, color=COLOURS[row.curve])
    for i, direction in enumerate(results.directions):
        axes = figure.add_subplot(grid[i // 3, 2 + i % 3])
        draw_panel(axes, results, i)
        axes.set_title(" to ".join(direction), fontsize=10)
        axes.set(xlim=XLIM, ylim=YLIM)
        axes.tick_params(labelsize=7)
    handles, labels = large.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=6, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")
    pyplot.close(figure)


def write_report(folder: Path, rows: Sequence[Row], records: Sequence[dict], page: Path | None = None) -> list[Path]:
    """Write `FILES` below `folder`, and the tables into a page that has their marks; the paths are returned.

    Nothing is written as long as no row is complete in every direction.
    """
    results = Results(rows, records)
    if not results.rows:
        return []
    paths = [folder / name for name in FILES]
    blocks = tables(results)
    write_csv(paths[0], [line for row in results.rows for line in results.lines(row)])
    with whole_file(paths[1]) as part:
        part.write_text("".join(f"{name}\n\n{table}\n" for name, table in blocks.items()), encoding="utf-8")
    write_plot(paths[2], results)
    if page:
        paste_into(page, blocks)
        paths.append(page)
    return paths
