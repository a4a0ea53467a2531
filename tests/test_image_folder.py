"""Images kept by hash, within a budget."""

import os

import pytest
from PIL import Image

from ditail.cache.images import ImageFolder


def image(colour: int) -> Image.Image:
    return Image.frombytes("RGB", (32, 32), os.urandom(32 * 32 * 3 - 1) + bytes([colour]))


@pytest.fixture
def folder(tmp_path):
    return ImageFolder(tmp_path / "kept", 10**6)


def test_an_image_is_found_by_its_hash(folder):
    original = image(1)
    folder.put("0123456789", original)
    assert folder.get("0123456789").tobytes() == original.tobytes()
    assert folder.get("abcdef0123") is None and len(folder) == 1


def test_nothing_is_kept_without_a_budget(tmp_path):
    folder = ImageFolder(tmp_path / "kept", 0)
    folder.put("0123456789", image(1))
    assert folder.get("0123456789") is None and not (tmp_path / "kept").exists()


def test_the_least_recently_used_image_is_deleted_first(folder):
    for i, name in enumerate(("0000000000", "1111111111", "2222222222")):
        folder.put(name, image(i))
        os.utime(folder.path / f"{name}.png", (i, i))
    assert folder.get("0000000000") is not None  # used again
    folder.budget = folder.nbytes - 1
    folder.trim()
    assert folder.get("1111111111") is None
    assert folder.get("0000000000") is not None and folder.get("2222222222") is not None
    assert folder.nbytes <= folder.budget


@pytest.mark.parametrize("name", ["../../etc/pw", "", "0123456789.png", "ABCDEF0123", "01234567890"])
def test_a_name_that_is_not_a_hash(folder, name):
    assert folder.get(name) is None
    with pytest.raises(ValueError, match="not an image hash"):
        folder.put(name, image(1))


def test_a_damaged_file(folder):
    folder.put("0123456789", image(1))
    (folder.path / "0123456789.png").write_bytes(b"no image")
    assert folder.get("0123456789") is None


def test_clear_leaves_other_files_alone(folder):
    folder.put("0123456789", image(1))
    (folder.path / "note.txt").write_text("mine")
    folder.clear()
    assert len(folder) == 0 and (folder.path / "note.txt").exists()


def test_partial_files_of_a_crash_are_deleted(folder):
    folder.put("0123456789", image(1))
    old, young, foreign = (folder.path / name for name in ("abcdef0123.77.part", "abcdef0123.78.part", "mine.part"))
    for file in (old, young, foreign):
        file.write_bytes(b"half an image")
    for file in (old, foreign):
        os.utime(file, (1, 1))
    folder.put("1111111111", image(2))
    assert not old.exists() and young.exists() and foreign.exists()


def test_a_folder_in_which_no_time_can_be_set(folder, monkeypatch):
    """One that another user owns, say: its images are still found."""
    original = image(1)
    folder.put("0123456789", original)

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert folder.get("0123456789").tobytes() == original.tobytes()
