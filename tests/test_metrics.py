"""The evaluation's metrics on images whose answers are known, its rows, tables and resuming."""

import json

import numpy as np
import pytest
import torch

from ditail.errors import DitailError
from lab import evaluate, metrics, report

GROUND = (0.8, 0.9, 0.85)


def square(x: int = 40, y: int = 40, side: int = 40, colour=(0.9, 0.2, 0.1), hole: int = 0) -> np.ndarray:
    """An image `[128, 128, 3]` of one square on a pastel ground; `hole` leaves an outline of that inner side."""
    image = np.tile(np.array(GROUND, np.float32), (128, 128, 1))
    image[y : y + side, x : x + side] = colour
    if hole:
        rim = (side - hole) // 2
        image[y + rim : y + rim + hole, x + rim : x + rim + hole] = GROUND
    return image


def f1(a: np.ndarray, b: np.ndarray) -> float:
    return metrics.edge_f1(metrics.find_edges(a), metrics.find_edges(b))


def foreground_iou(a: np.ndarray, b: np.ndarray) -> float:
    return metrics.iou(metrics.find_foreground(a), metrics.find_foreground(b))


def test_identical_images_are_perfect():
    assert f1(square(), square()) == 1
    assert foreground_iou(square(), square()) == 1
    assert metrics.l1(square(), square()) == 0
    assert metrics.ssim(square(), square()) == pytest.approx(1)


def test_edges_of_another_colour_count_the_same():
    assert f1(square(colour=(0.1, 0.1, 0.1)), square()) == 1


def test_edges_differ_by_hue_alone():
    # The same luminance as the ground: an edge map of a grey image would be empty.
    luminance = np.array([0.2125, 0.7154, 0.0721])
    colour = np.array([1.0, 0.0, 0.5])
    colour[1] = (np.array(GROUND) @ luminance - colour @ luminance) / luminance[1]
    assert metrics.find_edges(square(colour=colour)).any()


@pytest.mark.parametrize(("shift", "expected"), [(1, 1.0), (2, 1.0), (20, 0.27), (50, 0.0)])
def test_edge_f1_tolerates_two_pixels(shift, expected):
    # Shifted by 20, a square of 40 keeps half of two sides, a quarter of its outline, and the tolerance's ends.
    assert f1(square(x=20), square(x=20 + shift)) == pytest.approx(expected, abs=0.03 if 0 < expected < 1 else 0)


def test_edge_f1_is_symmetric_and_punishes_what_was_made_up():
    extra = np.maximum(1 - square(), 1 - square(x=90, y=90, side=20))
    assert f1(extra, square()) == pytest.approx(f1(square(), extra))
    assert 0.6 < f1(extra, square()) < 0.9


def test_empty_images():
    empty = square(side=0)
    assert f1(empty, empty) == 1
    assert f1(empty, square()) == f1(square(), empty) == 0
    assert foreground_iou(empty, empty) == 1
    assert foreground_iou(empty, square()) == 0


def test_foreground_iou_of_shifted_and_disjoint_squares():
    assert foreground_iou(square(x=20), square(x=40)) == pytest.approx(20 / 60, abs=0.02)
    assert foreground_iou(square(x=10), square(x=80)) == 0


def test_an_outline_has_the_silhouette_of_what_it_outlines():
    assert foreground_iou(square(hole=30), square()) == 1


def test_the_ground_is_found_beside_an_object_at_the_border():
    assert metrics.ground_colour(square(x=0)) == pytest.approx(GROUND, abs=1e-6)


def test_distances():
    black, white = np.zeros((32, 32, 3), np.float32), np.ones((32, 32, 3), np.float32)
    assert metrics.l1(black, white) == 1
    assert metrics.ssim(black, white) == pytest.approx(1e-4 / (1 + 1e-4), abs=1e-6)


def test_arrays_are_cut_to_their_range():
    x = torch.tensor([-3.0, -1.0, 0.0, 3.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert metrics.to_arrays(x)[0, :, :, 0].tolist() == [[0, 0], [0.5, 1]]


def test_classifier_learns_and_survives_its_file(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    classifier = metrics.StyleClassifier()
    classes = torch.tensor([0, 1, 2] * 4)
    x = torch.randn(12, 3, 64, 64) * 0.1 + torch.tensor([-0.8, 0.0, 0.8])[classes].view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(x), classes).backward()
        optimizer.step()
    path = tmp_path / "classifier.safetensors"
    save_file({k: v.half() for k, v in classifier.state_dict().items()}, path)
    assert path.stat().st_size < 200_000
    loaded = metrics.load_classifier(path).probabilities(x)
    assert loaded.argmax(-1).tolist() == classes.tolist()
    assert loaded.sum(-1).tolist() == pytest.approx([1] * 12)


def test_a_broken_classifier_is_named(tmp_path):
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(DitailError, match="classifier.safetensors"):
        metrics.load_classifier(path)


def test_rows_are_the_whole_grid_and_the_baselines():
    rows = evaluate.all_rows()
    grid = {(r.alpha, r.beta, r.omega) for r in rows if r.method == evaluate.DITAIL}
    assert grid == {(a, b, w) for a in (1, 2, 3, 5, 8) for b in (0, 0.5, 1) for w in (3, 7.5)}
    assert {(r.strength, r.omega) for r in rows if r.method == "img2img"} == {
        (s, w) for s in (0.4, 0.6, 0.8) for w in (3, 7.5)}
    assert len({r.name for r in rows}) == len(rows)


def test_rows_can_be_chosen_by_parts_of_their_names():
    assert [r.name for r in evaluate.choose_rows("img2img 0.4, Plain Generation omega 3")] == [
        "plain generation omega 3", "img2img 0.4 omega 3", "img2img 0.4 omega 7.5"]
    with pytest.raises(DitailError, match="'nonsense'"):
        evaluate.choose_rows("nonsense")


def test_the_grid_takes_other_scenes_for_each_source_and_all_in_all():
    settings = evaluate.Settings(scenes=100, thinning=3)
    grid, main = evaluate.Row("Ditail", 3, None, 8.0, 1.0), evaluate.Row("Ditail", 3, None, *evaluate.MAIN)
    assert sorted(i for s in range(3) for i in settings.scenes_of(grid, s)) == list(range(100))
    assert list(settings.scenes_of(main, 1)) == list(range(100))


def test_a_unit_shares_one_inversion_and_what_is_done_is_left_out():
    rows = evaluate.choose_rows("ditail alpha 2, inverted, ditail alpha 3 beta 0.5")
    units = evaluate.cut_into_units(rows, ["a", "b"], set())
    assert all(len({(r.alpha, r.beta) for r in u.rows}) == 1 for u in units)
    assert len(units) == 2 * 4
    done = {(r.name, "a", "b") for r in rows}
    assert {u.source for u in evaluate.cut_into_units(rows, ["a", "b"], done)} == {"b"}


@pytest.mark.parametrize(("name", "value"), [("scenes", 0), ("scenes", 121), ("steps", 1000), ("thinning", 101)])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(DitailError, match=f"^{name}: ") as error:
        evaluate.check_settings(evaluate.Settings(**{name: value}), held_out=120)
    assert error.value.key == name


def records_of(rows, scenes=5):
    """Made-up records of two directions: every metric of the k-th row is k / 100."""
    return [{"row": row.name, "source": s, "target": t, "scenes": list(range(scenes)),
             **{m: [k / 100 + (s == "noto") * 0.01] * scenes for m in report.METRICS}}
            for k, row in enumerate(rows) for s, t in (("noto", "ink"), ("ink", "noto"))]


def test_every_method_has_its_colour_or_marker():
    assert {r.method for r in evaluate.all_rows()} == set(report.COLOURS) | set(report.REFERENCES)


def test_equal_style_compares_with_the_best_row_of_at_least_as_much_style():
    def line(method, style, edge, direction="a to b"):
        return {"row": method, "method": method, "direction": direction, "style": style, "edge_f1": edge}

    ditail = [line("Ditail", 0.2, 0.9), line("Ditail", 0.5, 0.6), line("Ditail", 0.8, 0.7)]
    other = [line("img2img", 0.3, 0.2, "b to a"), line("Ditail", 0.1, 1, "b to a")]
    table = report.equal_style_table([line("img2img", 0.5, 0.4), *other, *ditail])
    assert table.splitlines()[2] == "| img2img | 0.40 / 0.70 | 0.20 / none |"


def test_report_files(tmp_path):
    rows = evaluate.all_rows()
    paths = report.write_report(tmp_path, rows, records_of(rows), evaluate.Settings())
    assert [p.name for p in paths] == ["table.csv", "directions.csv", "table.md", "plot.png"]
    lines = paths[0].read_text().splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[2].startswith("true target through the VAE,true target through the VAE,,,,,10,0.015,")
    assert len(paths[1].read_text().splitlines()) == 1 + 2 * len(rows)
    assert "| true target through the VAE | 10 | 0.015 ±0.002 |" in paths[2].read_text()
    assert "| true target through the VAE | 0.01 / 0.01 | 0.02 / 0.02 |" in paths[2].read_text()
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_results_are_kept_and_belong_to_their_settings(tmp_path):
    path, key = tmp_path / "results.json", {"scenes": 5, "steps": 10}
    assert evaluate.read_records(path, key) == []
    evaluate.write_records(path, key, records := records_of(evaluate.all_rows()))
    assert evaluate.read_records(path, key) == records
    with pytest.raises(DitailError, match="other steps"):
        evaluate.read_records(path, {**key, "steps": 20})
    path.write_text(json.dumps(records)[:-9])
    with pytest.raises(DitailError, match="can't be read"):
        evaluate.read_records(path, key)


def stand_in_material(folder):
    files = {style: folder / f"{style}.safetensors" for style in ("noto", "ink")}
    classifier = folder / "classifier.safetensors"
    for path in (*files.values(), classifier):
        path.write_bytes(path.name.encode())
    images = {style: np.zeros((4, 8, 8, 3), np.uint8) for style in files}
    return evaluate.Material(files, classifier, ["a fox"] * 4, images)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked, ends_after = [], [1]

    def run_units(units, material, settings, progress, options):
        for i, unit in enumerate(units):
            if i == ends_after[0]:
                raise KeyboardInterrupt
            asked.append(unit)
            yield [r for r in records_of(unit.rows, settings.scenes) if r["source"] == unit.source]

    monkeypatch.setattr(evaluate, "run_units", run_units)
    material, options = stand_in_material(tmp_path), {"scenes": 4, "rows": "img2img 0.4,plain", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(tmp_path / "out", material=material, **options)
    assert not (tmp_path / "out" / "table.csv").exists()
    ends_after[0] = None
    paths = evaluate.run(tmp_path / "out", material=material, **options)
    assert len(asked) == len(set(asked)) == 4
    assert all(path.exists() for path in paths)
    evaluate.run(tmp_path / "out", material=material, **options)
    assert len(asked) == 4
    material.classifier.write_bytes(b"another")
    with pytest.raises(DitailError, match="weights and scenes"):
        evaluate.run(tmp_path / "out", material=material, **options)


def test_the_evaluator_measures_every_method_on_the_demo_checkpoints():
    settings = evaluate.Settings(scenes=2, steps=5, thinning=1)
    evaluator = evaluate.Evaluator(evaluate.load_material(), settings)
    chosen = evaluate.choose_rows("true,content,plain,img2img,without,inverted,ditail alpha 3 beta 0.5")
    rows = [r for r in chosen if r.omega in (None, 3)]
    units = [u for u in evaluate.cut_into_units(rows, evaluator.material.styles, set()) if u.source == "noto"]
    records = {(r["row"], r["target"]): r for u in units for r in evaluator.run(u)}
    assert len(records) == 2 * len(rows)
    values = [v for record in records.values() for name in report.METRICS for v in record[name]]
    assert len(values) == len(records) * len(report.METRICS) * settings.scenes
    assert all(-1 <= v <= 1 for v in values)
    assert records["true target image", "ink"]["l1"] == [0, 0]
    assert min(records["content through the VAE", "ink"]["iou"]) > 0.7
    assert evaluator.run(units[-1])[0] in records.values()
