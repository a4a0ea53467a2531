"""`python -m ditail mix` does what the tab does: folders, further sources, collage, generated sources, a cache."""

import base64
import json
import resource
import weakref

import pytest
from PIL import Image, ImageChops

from ditail.standalone import demo_checkpoints, host
from ditail.standalone import matrix as matrix_command
from ditail.standalone import mix as mix_command
from ditail.standalone.cli import main
from ditail.standalone.sheet import grid_sheet


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


def test_one_model_is_in_memory_at_a_time(paths, photos, tmp_path, monkeypatch):
    models, load_model = [], host.load_model

    def load(path):
        assert not any(model() for model in models)
        model = load_model(path)
        models.extend(map(weakref.ref, (model, model.unet, model.vae, model.text.model)))
        return model

    monkeypatch.setattr(host, "load_model", load)
    further = tmp_path / "settings.json"
    further.write_text(json.dumps({"sources": [{"source_checkpoint": str(paths["flat"])}], "tone": 1}))
    assert mix(paths, tmp_path / "out.png", f"--image={photos / '0.png'}", f"--settings={further}") == 0
    assert len(models) == 3 * 4


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
    ({"sources": [{"image": "nowhere.png"}]}, "sources[0].image: {}/nowhere.png does not exist"),
    ({"sources": [{"image": "bad.png"}]}, "sources[0].image: {}/bad.png is not an image that can be read"),
    ({"sources": [{"image": "0.png", "source_checkpoint": "gone.safetensors"}]},
     "sources[0].source_checkpoint: gone.safetensors: does not exist"),
    ({"sources": [{"image": "0.png", "source_checkpoint": "bad.safetensors"}]},
     "sources[0].source_checkpoint: {}/bad.yaml: is not the yaml of a latent diffusion model"),
    ({"sources": [{"image": "0.png", "source_vae": "x"}]}, "sources[0].source_vae: the command line uses"),
    ({"mask": "nowhere.png"}, "mask: {}/nowhere.png does not exist"),
    ({"mask": "x" * 5001}, "mask: is not base64"),
    ({"collage": [{"image": "0.png", "box": [2]}]}, "collage[0].box"),
    ({"magic": 1}, "magic: is not a setting of Ditail"), ([], "--settings: "),
])
def test_a_wrong_file_of_settings_is_one_sentence(paths, photos, tmp_path, capfd, values, words):
    (photos / "bad.png").write_text("no image")
    (photos / "bad.safetensors").symlink_to(paths["noto"])
    (photos / "bad.yaml").write_text("model: 3")
    (photos / "settings.json").write_text(json.dumps(values))
    assert mix(paths, tmp_path / "out.png", f"--image={photos / '0.png'}",
               f"--settings={photos / 'settings.json'}") == 2
    assert_one_sentence(capfd, words.format(photos))


@pytest.mark.parametrize("command", ["mix", "matrix"])
def test_the_image_of_the_options_comes_before_the_source_of_the_file(paths, photos, tmp_path, monkeypatch, command):
    """A file of settings that were sent to the API may say that the source is generated."""
    (tmp_path / "settings.json").write_text(json.dumps({"source": "generate"}))
    sources = []
    monkeypatch.setattr(mix_command, "run", lambda args, mixes: sources.append(mixes[0].job.request.settings.source))
    monkeypatch.setattr(matrix_command, "run", lambda matrix, *_: sources.append(matrix.values["source"]) or [])
    checkpoints = {"mix": [f"--source={paths['noto']}", f"--target={paths['ink']}"],
                   "matrix": [str(paths["noto"]), str(paths["ink"])]}[command]
    out = tmp_path / ("out.png" if command == "mix" else "out")
    assert main([command, *checkpoints, "--prompt=a fox", f"--image={photos / '0.png'}", f"--out={out}",
                 f"--settings={tmp_path / 'settings.json'}"]) == 0
    assert sources == ["image"]


def test_a_grid_of_many_images_has_few_files_open(photos):
    names, limits = [str(i) for i in range(20)], resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        sheet = grid_sheet("400 images", names, names, [[photos / "0.png"] * 20] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sheet.width > 20 * 64 and sheet.height > 20 * 64


def assert_one_sentence(capfd, words):
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and words in error[0], error


def test_an_image_of_a_file_of_settings_may_be_base64(paths, photos, tmp_path):
    image = base64.b64encode((photos / "0.png").read_bytes()).decode()
    outs = []
    for number, value in enumerate([image, f"data:image/png;base64,{image}", "0.png"]):
        # Some editors write a byte order mark.
        (photos / "settings.json").write_text(json.dumps({"image": value}), encoding="utf-8-sig")
        outs.append(tmp_path / f"{number}.png")
        assert mix(paths, outs[-1], f"--settings={photos / 'settings.json'}") == 0
    assert len({pixels(path) for path in outs}) == 1


def test_two_images_of_one_name_are_refused(paths, photos, tmp_path, capfd, loads):
    Image.open(photos / "0.png").save(photos / "0.jpg")
    assert mix(paths, tmp_path / "out", f"--image={photos}") == 2
    assert_one_sentence(capfd, f"--out: {photos}/0.jpg and {photos}/0.png would both become {tmp_path}/out/0.png")
    assert loads == [] and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("change", "words"), [
    ({"image": "", "out": ""}, "--out: {}/0 1.png would overwrite an input; choose another name"),
    ({"image": "0.png", "out": "0.png"}, "--out: {}/0.png would overwrite an input"),
    ({"image": "0.png", "out": "link.png"}, "--out: {}/link.png would overwrite the input {}/0.png"),
    ({"image": "0.png", "out": "1.png", "mask": "1.png"}, "--out: {}/1.png would overwrite an input"),
    ({"image": "0.png", "out": "2.png", "settings": "settings.json"}, "--out: {}/2.png would overwrite an input"),
    ({"image": "0 1.png", "out": "0.png", "seeds": "1,2"}, "--out: {}/0 1.png would overwrite an input"),
    ({"image": "0 source.png", "out": "0.png", "show_source": None},
     "--out: {}/0 source.png would overwrite an input"),
    ({"image": "0.png", "out": "x.png", "save_latents": "0.png"}, "--save-latents: {}/0.png would overwrite an input"),
    ({"image": "1.png", "out": "x.png", "save_latents": "1.txt"}, "--save-latents: {}/1.txt would overwrite an input"),
    ({"image": "1.png", "out": "x.png", "save_latents": "x.png"}, "--save-latents: {}/x.png is an image of --out"),
    ({"image": "", "out": "x", "save_latents": "z"}, "--save-latents: needs one content image, and {} is a folder"),
])
def test_a_file_of_the_user_is_not_overwritten(paths, photos, capfd, change, words):
    (photos / "link.png").symlink_to("0.png")
    (photos / "settings.json").write_text(json.dumps({"collage": [{"image": "2.png", "box": [0.5, 0, 0.5, 1]}]}))
    for name in ("0 1.png", "0 source.png"):
        Image.open(photos / "0.png").save(photos / name)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    files = ("image", "mask", "settings", "save_latents")
    options = [f"--{key.replace('_', '-')}" + ("" if value is None else f"={photos / value if key in files else value}")
               for key, value in change.items() if key != "out"]
    assert mix(paths, photos / change["out"], *options) == 2
    assert_one_sentence(capfd, words.format(photos, photos))
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_a_prompt_beside_an_image_is_utf_8(paths, photos, tmp_path, capfd):
    text = photos / "1.txt"
    text.write_text("a pear", encoding="utf-8-sig")
    assert mix(paths, tmp_path / "out.png", f"--image={photos / '1.png'}") == 0
    assert metadata(tmp_path / "out.png")["prompt"] == "a pear"
    capfd.readouterr()
    text.write_bytes("ein Füchslein".encode("latin-1"))
    assert mix(paths, tmp_path / "out.png", f"--image={photos / '1.png'}") == 2
    assert_one_sentence(capfd, f"ditail: {text} can't be read ('utf-8' codec can't decode")


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE"])
def test_an_image_does_not_depend_on_the_batch_size(paths, photos, tmp_path, sampler):
    options = [f"--image={photos / '0.png'}", f"--sampler={sampler}"]
    for size in (1, 2):
        assert mix(paths, tmp_path / f"{size}.png", *options, "--seeds=1,2", f"--batch-size={size}") == 0
    for seed in (1, 2):
        alone, together = (Image.open(tmp_path / f"{size} {seed}.png") for size in (1, 2))
        # A batch's sums round otherwise; the noise of another seed changes pixels by tens of levels.
        assert max(high for _, high in ImageChops.difference(alone, together).getextrema()) <= 2
