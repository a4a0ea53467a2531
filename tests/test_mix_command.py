"""`python -m ditail mix` does what the tab does: folders, further sources, collage, generated sources, a cache."""

import json

import pytest
from PIL import Image

from ditail.standalone import demo_checkpoints, host
from ditail.standalone.cli import main


@pytest.fixture
def loads(monkeypatch):
    """The names of the checkpoints as they are loaded."""
    names, load_model = [], host.load_model

    def load(path):
        names.append(path.stem.removeprefix("house-"))
        return load_model(path)

    monkeypatch.setattr(host, "load_model", load)
    return names


@pytest.fixture
def photos(tmp_path):
    """A folder of three content images, one of them with its prompt beside it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(demo_checkpoints.held_out().images["noto"][:3]):
        image.resize((64, 64)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("a pear on pink\n")
    (folder / "notes.md").write_text("no image")
    return folder


def mix(paths, out, *more, target="ink"):
    return main(["mix", f"--source={paths['noto']}", f"--target={paths[target]}", "--prompt=a fox on mint", "--steps=2",
                 "--cfg=3", "--width=64", "--height=64", f"--out={out}", *more])


def metadata(path):
    return json.loads(Image.open(path).text["ditail"])


def pixels(path):
    return Image.open(path).convert("RGB").tobytes()


@pytest.mark.parametrize("tone", [0, 1])
def test_a_folder_loads_each_checkpoint_once(paths, photos, tmp_path, loads, capfd, tone):
    out = tmp_path / "folder of its own" / "out"
    assert mix(paths, out, f"--image={photos}", f"--tone={tone}") == 0
    assert loads == ["noto", "ink"]
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "2.png"]
    prompts = [metadata(out / f"{n}.png")["prompt"] for n in range(3)]
    assert prompts == ["a fox on mint", "a pear on pink", "a fox on mint"]
    assert metadata(out / "2.png")["image"] == str(photos / "2.png")
    assert [line.split(" (")[0] for line in capfd.readouterr().out.splitlines()] == [str(out / f"{n}.png")
                                                                                  for n in range(3)]
    # Each is what it is alone.
    assert mix(paths, tmp_path / "alone.png", f"--image={photos / '2.png'}", f"--tone={tone}") == 0
    assert pixels(tmp_path / "alone.png") == pixels(out / "2.png")


def test_a_tone_loads_no_checkpoint_twice(paths, photos, tmp_path, loads):
    images = []
    for tone in (0, 1):
        images.append(tmp_path / f"{tone}.png")
        assert mix(paths, images[-1], f"--image={photos / '0.png'}", f"--tone={tone}") == 0
    assert loads == ["noto", "ink"] * 2
    assert pixels(images[0]) != pixels(images[1])


def test_what_is_wrong_with_the_last_image_is_told_first(paths, photos, tmp_path, loads, capfd):
    (photos / "9.png").write_text("no image")
    assert mix(paths, tmp_path / "out", f"--image={photos}") == 2
    assert "9.png is not an image that can be read" in capfd.readouterr().err
    assert loads == [] and not list((tmp_path / "out").iterdir())


def test_a_generated_source_of_several_seeds_is_shown(paths, tmp_path):
    options = ["--generate", "--seeds=1,2", "--show-source"]
    assert mix(paths, tmp_path / "fox.png", *options, "--batch-size=2") == 0
    names = ["fox 1 source.png", "fox 1.png", "fox 2 source.png", "fox 2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len({pixels(tmp_path / name) for name in names}) == 4
    assert [metadata(tmp_path / name)["seed"] for name in names] == [1, 1, 2, 2]
    assert mix(paths, tmp_path / "kept.png", "--generate", "--seed=1", "--source-latents=kept") == 0
    assert pixels(tmp_path / "kept.png") != pixels(tmp_path / "fox 1.png")


def test_a_cache_on_disk_spares_the_source(paths, photos, tmp_path, loads):
    options = [f"--image={photos / '0.png'}", f"--cache={tmp_path / 'cache'}", "--tone=0.5"]
    assert mix(paths, tmp_path / "first.png", *options) == 0
    del loads[:]
    assert mix(paths, tmp_path / "second.png", *options) == 0
    assert loads == ["ink"] and pixels(tmp_path / "first.png") == pixels(tmp_path / "second.png")
    assert mix(paths, tmp_path / "third.png", *options, "--alpha=1") == 0
    assert loads == ["ink", "noto", "ink"] and pixels(tmp_path / "third.png") != pixels(tmp_path / "first.png")


def test_sources_and_a_collage_of_a_file(paths, photos, tmp_path, loads):
    """Paths in it are relative to it; what the target makes itself needs no loading of its own."""
    values = {"sources": [{"image": "0.png", "source_checkpoint": "", "weight": 0.5},
                          {"image": "1.png", "source_checkpoint": str(paths["flat"]), "weight": 2}],
              "collage": [{"image": "2.png", "box": [0.5, 0, 0.5, 1]}]}
    images = []
    for keys in ((), ("sources",), ("collage",), ("sources", "collage")):
        (photos / "settings.json").write_text(json.dumps({key: values[key] for key in keys}))
        images.append(tmp_path / f"{len(images)}.png")
        del loads[:]
        assert mix(paths, images[-1], f"--image={photos / '0.png'}", f"--settings={photos / 'settings.json'}") == 0
        assert sorted(loads[:-1]) == (["flat", "noto"] if "sources" in keys else ["noto"]) and loads[-1] == "ink"
    assert len({pixels(path) for path in images}) == 4


@pytest.mark.parametrize(("values", "words"), [
    ({"sources": [{"image": "nowhere.png"}]}, "sources[0].image"),
    ({"collage": [{"image": "0.png", "box": [2]}]}, "collage[0].box"),
    ({"magic": 1}, "magic: is not a setting of Ditail"), ([], "--settings: "),
])
def test_a_wrong_file_of_settings_is_one_sentence(paths, photos, tmp_path, capfd, values, words):
    (photos / "settings.json").write_text(json.dumps(values))
    assert mix(paths, tmp_path / "out.png", f"--image={photos / '0.png'}",
               f"--settings={photos / 'settings.json'}") == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and words in error[0]
