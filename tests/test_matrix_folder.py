"""The folder of a matrix on the command line: names of its images, and what is there already."""

import re
from contextlib import nullcontext

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ditail import DitailError
from ditail.standalone import host, matrix_folder
from ditail.standalone.arguments import checkpoint_paths
from ditail.standalone.samplers import noise_mark
from ditail.standalone.sampling import SamplingJob


def named(folder, paths, **names):
    """The demo checkpoints in a folder under other names."""
    for style, name in names.items():
        for suffix in (".safetensors", ".yaml"):
            (folder / f"{name}{suffix}").symlink_to(paths[style].with_suffix(suffix))
    return {style: folder / f"{name}.safetensors" for style, name in names.items()}


@pytest.mark.parametrize(("names", "words"), [
    ({"noto": "n" * 130, "ink": "i" * 130}, "can't be written (File name too long)"),
    ({"noto": "a", "ink": "b in c", "flat": "a in b"}, None),
    ({"noto": "a", "ink": "b in c", "flat": "a in b", "other": "c"}, "two images would have the name a in b in c.png"),
])
def test_names_of_images_are_checked_before_any_work(paths, tmp_path, names, words):
    checkpoints = list(named(tmp_path, {**paths, "other": paths["noto"]}, **names).values())
    folder = matrix_folder.Matrix(tmp_path, checkpoints, ["a fox"], [0], SamplingJob(("",)), (64, 64), {})
    with pytest.raises(DitailError, match=re.escape(words)) if words else nullcontext():
        folder.check_names()


def test_images_and_latents_of_the_earlier_noise_of_euler_a_are_not_used(paths, tmp_path):
    entries = {}
    for sampler in ("Euler a", "Euler"):
        job = SamplingJob(("",), sampler=sampler)
        metadata = matrix_folder.Matrix(tmp_path, list(paths.values()), ["a"], [0], job, (64, 64), {}).metadata
        entries[sampler] = metadata, host.FileJob(job, (64, 64), 1, None).generation_fingerprint(0)
    for metadata, key in entries.values():
        assert key == {"generate": [metadata["sampler"], 20, 7.5], "seed": 0, **noise_mark(metadata["sampler"])}
    assert [["ancestral_noise" in entry for entry in of] for of in entries.values()] == [[True, True], [False, False]]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_checkpoints_whose_names_differ_in_case_alone(monkeypatch, tmp_path, platform):
    files = [tmp_path / folder / name for folder, name in (("1", "A.safetensors"), ("2", "a.safetensors"))]
    assert checkpoint_paths(files) == files
    monkeypatch.setattr("sys.platform", platform)
    with pytest.raises(DitailError, match="same file name"):
        checkpoint_paths(files)


@pytest.mark.parametrize("metadata", ["[]", "3", "a bomb"])
def test_an_image_of_others_is_not_overwritten(monkeypatch, tmp_path, metadata):
    info = PngInfo()
    info.add_text("ditail", "{}" if metadata == "a bomb" else metadata)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    if metadata == "a bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    assert matrix_folder.read_png_metadata(tmp_path / "a.png") == {}
