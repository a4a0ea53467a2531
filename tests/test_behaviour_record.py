"""The record itself: it tells other pixels, other sentences, other jobs and another environment."""

import pytest

from tests.behaviour_record import VARIABLE, Record, describe_images, draw_avocado, draw_fox


@pytest.fixture
def fox(tmp_path, monkeypatch) -> dict:
    """An answer with one image, and an empty record to write it to."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "record.json"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return {"status": 200, "images": describe_images([draw_fox()])}


@pytest.fixture
def recorded(fox) -> dict:
    """That answer, recorded as of the job "a"."""
    with pytest.raises(pytest.skip.Exception, match="recorded in"):
        Record("webui").check("a", fox)
    return fox


def test_the_same_answer_passes_and_sections_are_apart(recorded):
    Record("webui").check("a", recorded)
    assert Record("command line").is_recording


@pytest.mark.parametrize(("changed", "sentence"), [
    ({"images": describe_images([draw_avocado()])}, "image 0: other pixels; thumbnails differ by 55"),
    ({"images": describe_images([draw_fox(64)])}, r"image 0 of \[128, 128\]: now 0 of \[64, 64\]"),
    ({"images": []}, "images: recorded 1, now 0"),
    ({"status": 422, "error": "image: is none"}, "error: recorded None, now 'image: is none'\nstatus: recorded 200"),
])
def test_what_differs_is_named(recorded, changed, sentence):
    with pytest.raises(AssertionError, match=f'"a" is not as recorded in .*\n{sentence}'):
        Record("webui").check("a", {**recorded, **changed})


def test_comparing_adds_no_job(recorded):
    with pytest.raises(AssertionError, match='"b" is not in'):
        Record("webui").check("b", recorded)
    assert list(Record("webui").jobs) == ["a"]


def test_another_environment_is_refused(recorded, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(AssertionError, match="was recorded with"):
        Record("webui")
