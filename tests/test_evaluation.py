"""The evaluation's rows, resuming, comparisons, tables and costs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ditail.content.presets import PRESETS
from ditail.content.settings import DitailSettings
from ditail.errors import DitailError
from ditail.job.cost import cost_of
from lab import compare, costs, evaluate, report
from lab.compare import STRUCTURE, STYLE
from lab.rows import BY_STEPS, CONTENT, GENERATED, MAIN, OURS, PAPER, PLAIN, TRIED, TRUTH, all_rows, choose_rows

DIRECTIONS = [("ink", "noto"), ("noto", "ink")]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"
RECORDS = PAGE.with_suffix("") / evaluate.RESULTS
COUNT = costs.preset_costs


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Counting FLOPs takes seconds; one test does it."""
    monkeypatch.setattr(costs, "preset_costs", lambda: {"Paper": {"cold": 1.76, "warm": 1.26, "hot": 0.96}})


# Rows.

def test_rows_have_names_of_their_own_and_every_method_a_colour():
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows)
    assert {row.table for row in rows} == {MAIN, GENERATED, BY_STEPS, TRIED}
    assert {row.curve for row in rows if row.table == MAIN} == set(report.COLOURS) | {TRUTH, CONTENT, PLAIN}


def test_the_presets_rows_are_the_presets():
    by_name = {row.name: row for row in all_rows()}
    for name in ("Balanced", "Structure", "Style", "Draft"):
        assert {key: getattr(by_name[name].ditail, key) for key in PRESETS[name]} == PRESETS[name]
    assert by_name["Paper alpha 3"].ditail == by_name["20 steps: Paper alpha 3"].ditail


def test_rows_can_be_chosen_by_the_beginnings_of_their_names_and_keep_the_order_asked_for():
    assert [row.name for row in choose_rows("style, IMG2IMG 0.4")] == ["Style", "img2img 0.4"]
    assert choose_rows(None) == all_rows()
    with pytest.raises(DitailError, match="'nonsense'"):
        choose_rows("nonsense")


# Units and results.

def test_units_share_an_inversion_and_leave_out_what_is_done():
    rows = choose_rows("plain,balanced,structure,paper alpha 3")
    units = evaluate.cut_into_units(rows, ["a", "b"], 30, set())
    assert {tuple(row.name for row in unit.rows) for unit in units} == {
        ("plain",), ("Balanced", "Structure"), ("Paper alpha 3",)}
    assert [unit.scenes[0] for unit in units] == [0] * 6 + [25] * 6
    assert units[-1].scenes == tuple(range(25, 30))
    done = {(row.name, "a", n) for row in rows for n in range(30)} | {("Balanced", "b", n) for n in range(25)}
    left = evaluate.cut_into_units(rows, ["a", "b"], 30, done)
    assert {unit.source for unit in left} == {"b"}
    first = [row.name for unit in left if unit.scenes[0] == 0 for row in unit.rows]
    assert first == ["plain", "Structure", "Paper alpha 3"]


def test_scenes_between_those_of_an_earlier_run_are_not_left_out():
    """It was stopped within a unit's scenes, by another --scenes."""
    rows = choose_rows("balanced,structure")
    done = {("Balanced", "a", n) for n in range(10)}
    units = evaluate.cut_into_units(rows, ["a"], 25, done)
    assert [([row.name for row in unit.rows], unit.scenes) for unit in units] == [
        (["Balanced"], tuple(range(10, 25))), (["Structure"], tuple(range(25)))]


@pytest.mark.parametrize("scenes", [0, 101, 2.0, True])
def test_scenes_that_are_not_to_be_reported_are_refused(scenes):
    with pytest.raises(DitailError, match="^scenes: "):
        evaluate.check_scenes(scenes, held_out=120)


def records_of(rows, scenes=(0, 1, 2, 3, 4)):
    """Made-up records: the k-th row has style k / 100, edge F1 1 - k / 100; the scenes differ."""
    return [{"row": row.name, "source": s, "target": t, "scenes": list(scenes),
             "style": [k / 100 + i / 1000 for i in scenes], "edge_f1": [1 - k / 100 - i / 1000 for i in scenes],
             "l1": [0.1] * len(scenes), "distance": [k + i / 10 for i in scenes]}
            for k, row in enumerate(rows) for s, t in DIRECTIONS]


def stand_in_material(folder):
    files = {style: folder / f"{style}.safetensors" for style in ("noto", "ink")}
    classifier = folder / "classifier.safetensors"
    for path in (*files.values(), classifier):
        path.write_bytes(path.name.encode())
    images = {style: np.zeros((4, 8, 8, 3), np.uint8) for style in files}
    return evaluate.Material(files, classifier, ["a fox"] * 4, images)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    run, ends_after = [], [1]

    def run_units(units, material, progress, options):
        for i, unit in enumerate(units):
            if i == ends_after[0]:
                raise KeyboardInterrupt
            run.append(unit)
            yield [r for r in records_of(unit.rows, unit.scenes) if r["source"] == unit.source]

    monkeypatch.setattr(evaluate, "run_units", run_units)
    material, options = stand_in_material(tmp_path), {"scenes": 4, "rows": "img2img 0.4,plain", "progress": False}
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(out, material=material, **options)
    assert [path.name for path in out.iterdir()] == [evaluate.RESULTS]
    with (out / evaluate.RESULTS).open("a") as file:
        file.write('\n{"row": "plain", "sour')  # as a stop while writing leaves it
    ends_after[0] = None
    paths = evaluate.run(out, material=material, **options)
    assert len(run) == len(set(run)) == 4
    assert [path.name for path in paths] == list(report.FILES) and all(path.exists() for path in paths)
    evaluate.run(out, material=material, **options)
    assert len(run) == 4
    material.classifier.write_bytes(b"another")
    with pytest.raises(DitailError, match="weights and scenes"):
        evaluate.run(out, material=material, **options)


def test_a_file_that_holds_no_results_is_named(tmp_path):
    assert evaluate.read_records(tmp_path / "nothing", {}) == []
    (tmp_path / "text").write_text("no")
    with pytest.raises(DitailError, match="can't be read"):
        evaluate.read_records(tmp_path / "text", {})


# Comparisons.

def scores_of(**rows):
    """Rows of (style, edge F1) in one direction with scenes that differ by the same amount in every row."""
    jitter = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    return compare.Scores({"row": name, "source": "a", "target": "b", "scenes": list(range(5)),
                           "style": list(style + jitter), "edge_f1": list(edge - jitter / 2)}
                          for name, (style, edge) in rows.items())


def against(point, *curve, along=STYLE):
    rows = {"ours": point, **{f"rival {i}": p for i, p in enumerate(curve)}}
    return compare.point_against_curve(scores_of(**rows), "ours", [f"rival {i}" for i in range(len(curve))],
                                       [("a", "b")], along)[0]


def test_a_point_is_compared_with_the_line_between_two_points():
    at_style = against((0.5, 0.7), (0.4, 0.8), (0.6, 0.4))
    assert (at_style.value, at_style.is_bound) == (pytest.approx(0.7 - 0.6), False)
    at_structure = against((0.5, 0.7), (0.4, 0.8), (0.6, 0.4), along=STRUCTURE)
    assert at_structure.value == pytest.approx(0.5 - 0.45)


def test_a_rival_with_more_of_both_is_ahead():
    assert against((0.5, 0.7), (0.4, 0.2), (0.6, 0.9)).value == pytest.approx(-0.2)


def test_where_the_rival_does_not_reach_the_difference_is_a_bound():
    beyond = against((0.9, 0.5), (0.4, 0.8), (0.6, 0.4))
    assert (beyond.value, beyond.is_bound) == (pytest.approx(0.1), True)
    assert report.shown(beyond).startswith("**≥ +0.100 [")
    # At least a little behind says nothing: it is not set off.
    assert report.shown(against((0.9, 0.3), (0.4, 0.8), (0.6, 0.4))).startswith("≥ -0.100 [")


def test_scenes_are_paired():
    """Scenes differ by 0.2 and the methods by 0.01: only paired samples tell them apart."""
    difference = against((0.5, 0.61), (0.5, 0.60))
    assert (difference.low, difference.high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert report.shown(difference).startswith("**+0.010 [")
    same = against((0.5, 0.6), (0.5, 0.6))
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0))


def test_an_interval_is_as_wide_as_the_scenes_say():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, 100)
    scores = compare.Scores([{"row": name, "source": "a", "target": "b", "scenes": list(range(100)),
                              "style": [0.5] * 100, "edge_f1": list(edge)}
                             for name, edge in (("ours", 0.6 + noise), ("rival", np.full(100, 0.6)))])
    difference = compare.point_against_curve(scores, "ours", ["rival"], [("a", "b")], STYLE)[0]
    error = noise.std(ddof=1) / math.sqrt(100)
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_only_scenes_that_both_have_in_every_direction_are_compared():
    records = records_of(choose_rows("plain,Balanced"))
    records[0] = {key: value[:3] if isinstance(value, list) else value for key, value in records[0].items()}
    scores = compare.Scores(records)
    assert scores.common_scenes(["plain", "Balanced"], DIRECTIONS) == [0, 1, 2]
    assert scores.common_scenes(["plain", "Style"], DIRECTIONS) == []
    assert compare.point_against_curve(scores, "plain", ["Style"], DIRECTIONS, STYLE) == []


def test_from_a_rivals_row_the_sign_is_opposite():
    scores = scores_of(**{"a": (0.4, 0.8), "b": (0.6, 0.6), "img2img": (0.5, 0.5)})
    ours = compare.curve_against_point(scores, ["a", "b"], "img2img", [("a", "b")], STYLE)[0]
    assert ours.value == pytest.approx(0.2) and ours.low <= ours.value <= ours.high


def test_a_smaller_distance_is_better():
    records = [{"row": row, "source": "a", "target": "b", "scenes": [0], "style": [0.5], "distance": [d]}
               for row, d in (("ours", 10.0), ("rival", 15.0))]
    scores = compare.Scores(records, "distance")
    assert compare.point_against_curve(scores, "ours", ["rival"], [("a", "b")], STYLE)[0].value == 5


# Tables.

def test_report_files(tmp_path):
    rows = all_rows()
    paths = report.write_report(tmp_path, rows, records_of(rows))
    assert [path.name for path in paths] == list(report.FILES)
    assert len(paths[0].read_text().splitlines()) == 1 + 3 * len(rows)
    text = paths[1].read_text()
    assert "| plain | 5 | 1.00 | 0.022 ±0.000 | 0.978 ±0.000 | 2.2 ±0.0 | 0.100 ±0.000 |" in text
    assert "| img2img 0.6 | 5 | 0.60 |" in text
    assert "Balanced - Paper" in text and "8 steps: Balanced" in text and "generated: Paper inverted" in text
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_rows_that_lack_a_direction_are_left_out(tmp_path):
    rows = choose_rows("plain,Balanced,Structure")
    records = [r for r in records_of(rows) if (r["row"], r["source"]) != ("Structure", "ink")]
    results = report.Results(rows, records)
    assert [row.name for row in results.rows] == ["plain", "Balanced"]
    assert results.curve(OURS) == ["Balanced"] and results.curve(PAPER) == []


def test_the_rows_of_a_table_are_means_over_the_same_scenes():
    plain, balanced = choose_rows("plain,Balanced")
    results = report.Results([plain, balanced], records_of([plain]) + records_of([balanced], (0, 1)))
    assert results.lines(plain)[-1]["images"] == results.lines(balanced)[-1]["images"] == 2 * 2
    assert "| plain | 2 |" in report.tables(results)["rows"]


def test_tables_are_pasted_after_their_marks():
    page = "# A\n<!-- rows -->\n| old |\n| --- |\n\ntext\n<!-- steps -->\n"
    assert report.paste(page, {"rows": "| new |\n", "steps": "| 1 |\n"}) == (
        "# A\n<!-- rows -->\n| new |\n\ntext\n<!-- steps -->\n| 1 |\n")
    with pytest.raises(DitailError, match="<!-- other -->"):
        report.paste(page, {"other": ""})


def test_a_page_is_written_with_the_tables(tmp_path):
    rows, page = choose_rows("plain"), tmp_path / "page.md"
    results = report.Results(rows, records_of(rows))
    page.write_text("".join(f"<!-- {name} -->\n| old |\n\n" for name in (*report.tables(results), "steps")))
    report.write_report(tmp_path, rows, records_of(rows), page)
    assert "<!-- rows -->\n|  | scenes |" in page.read_text()
    # A table without a row in these results stays.
    assert page.read_text().endswith("<!-- steps -->\n| old |\n\n")


def test_the_page_has_the_tables_of_its_records():
    """Of these checkpoints, scenes and rows."""
    records = evaluate.read_records(RECORDS, {"weights and scenes": evaluate.load_material().digest()})
    assert {r["row"] for r in records} <= {row.name for row in all_rows()}
    results = report.Results(all_rows(), records)
    assert len(results.scenes[MAIN]) == evaluate.REPORTED
    tables, page = report.tables(results), PAGE.read_text(encoding="utf-8")
    del tables["presets' cost"]  # tested below
    assert len(tables) >= 6 and report.paste(page, tables) == page


# Costs.

def test_the_cost_of_rows():
    by_name = {row.name: row for row in all_rows()}
    cost = {name: costs.row_cost(row) for name, row in by_name.items()}
    assert cost["true target image"] is None
    assert (cost["plain"], cost["img2img 0.6"], cost["DDIB CFG 5"], cost["DiffStyler weight 1"]) == (1, 0.6, 1.5, 2)
    assert cost["Balanced"] < cost["Paper alpha 3"] < 2 < cost["generated: Balanced inverted"]


@pytest.mark.slow
def test_the_page_has_what_the_presets_cost_and_they_keep_their_budgets():
    counted = COUNT()
    assert f"<!-- presets' cost -->\n{report.costs_table(counted)}" in PAGE.read_text(encoding="utf-8")
    for name, values in PRESETS.items():
        settings = DitailSettings.from_dict(values)
        cost = cost_of(settings, costs.STEPS)
        assert (cost.cold, cost.warm) == pytest.approx((counted[name]["cold"], counted[name]["warm"]), abs=0.01)
    balanced = counted["Balanced"]
    assert balanced["cold"] <= 1.40 and balanced["warm"] <= 1.15 and balanced["hot"] <= 0.90
    assert counted["Draft"]["cold"] <= 1.15


def test_results_of_a_line_are_json(tmp_path):
    evaluate.add_lines(tmp_path / "x", [{"a": 1}, {"b": [2]}])
    assert [json.loads(line) for line in (tmp_path / "x").read_text().strip().splitlines()] == [{"a": 1}, {"b": [2]}]
