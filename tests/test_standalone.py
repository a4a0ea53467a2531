"""The stand-alone host on the demo checkpoints: loading, samplers, the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ditail import DitailError
from ditail.content.images import tensor_to_images
from ditail.content.settings import DitailSettings
from ditail.keys import cache_key
from ditail.standalone import checkpoint_files, demo_checkpoints, host
from ditail.standalone.checkpoint_files import check_checkpoint, read_config, read_schedule
from ditail.standalone.cli import main
from ditail.standalone.host import FileLibrary, FileTarget
from ditail.standalone.model import default_device, default_dtype, load_model
from ditail.standalone.names import SAMPLERS
from ditail.standalone.samplers import Sampler, seeded_noise
from ditail.standalone.sampling import SamplingJob, generate
from lab import methods

JOB = SamplingJob(("a fox on mint",), seeds=(3,), steps=4, omega=3.0)


@pytest.fixture(scope="module")
def noto(paths):
    return load_model(paths["noto"])


@pytest.fixture(scope="module")
def ink(paths):
    return load_model(paths["ink"])


@pytest.fixture
def content(tmp_path):
    path = tmp_path / "content.png"
    demo_checkpoints.held_out().images["noto"][0].save(path)
    return path


def inverted(model, job, z0, **settings):
    return methods.source_latents(model, job, DitailSettings(**settings), z0, is_null=False)


def mix_arguments(paths, content, out, **changes):
    options = {"source": paths["noto"], "target": paths["ink"], "image": content, "prompt": "a fox on pink",
               "out": out, "steps": 3, **changes}
    return ["mix", *(f"--{k.replace('_', '-')}={v}" for k, v in options.items() if v is not None)]


def test_assets_are_small_and_credited():
    size = sum(p.stat().st_size for p in demo_checkpoints.ASSETS.rglob("*") if p.is_file())
    assert size < 40e6
    credits = (demo_checkpoints.ASSETS / "CREDITS.md").read_text()
    assert all(word in credits for word in ("Noto", "Fluent", "Apache", "MIT"))


def test_the_demo_models_have_sd1_topology(noto):
    assert (len(noto.unet.input_blocks), len(noto.unet.output_blocks)) == (12, 12)
    assert noto.architecture.name == "SD 1.x/2.x"
    assert noto.native_side == 128
    assert noto.encode_prompts(["a fox", "a fox, " * 60]).shape == (2, 231, 128)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_generates_inverts_and_transfers(noto, ink, name):
    job = JOB.with_(sampler=name)
    z, passed = generate(noto, job, 128, 128)
    again, _ = generate(noto, job, 128, 128)
    assert torch.equal(z, again)
    source_latents = inverted(noto, job, z)
    expected = Sampler(name, job.steps, noto.alphas_cumprod).timesteps
    assert source_latents.timesteps.tolist() == sorted(expected)
    assert passed.timesteps.tolist() == sorted(expected)
    plain, _ = generate(ink, job, 128, 128)
    for source in (source_latents, passed):
        mixed = methods.ditail(ink, job, DitailSettings(), source, z)
        assert torch.isfinite(mixed).all()
        assert (mixed - plain).abs().mean() > 0.02
    assert not any(m._forward_hooks for m in ink.unet.modules())


@pytest.fixture(scope="module")
def ddim(noto):
    """The latents of DDIM's image of 30 steps."""
    return generate(noto, JOB.with_(steps=30, omega=1.0), 128, 128)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"DPM++ SDE", "Euler a"}))
def test_samplers_agree_on_the_same_trajectory(noto, ddim, name):
    """Deterministic samplers solve one ODE: with many steps they end near DDIM's image."""
    z, _ = generate(noto, JOB.with_(steps=30, omega=1.0, sampler=name), 128, 128)
    assert (z - ddim).abs().mean() < 0.25 * ddim.abs().mean()


@pytest.mark.slow
def test_an_image_is_reconstructed_from_its_inversion(noto):
    """With the source's own cond and no CFG, sampling undoes inversion: the image stays recognisable."""
    z0, _ = generate(noto, JOB.with_(steps=20), 128, 128)
    job, settings = JOB.with_(steps=20, omega=1.0), {"alpha": 1.0, "beta": 0.0}
    back = methods.ditail(noto, job, DitailSettings(**settings), inverted(noto, job, z0, **settings), z0)
    noise, _ = generate(noto, job, 128, 128)
    assert (back - z0).abs().mean() < 0.4 * (noise - z0).abs().mean()


def test_rows_do_not_depend_on_their_neighbours(noto):
    job = JOB.with_(prompts=("a fox on mint", "a pear on pink"), seeds=(3, 4))
    z, _ = generate(noto, job, 128, 128)
    alone, _ = generate(noto, JOB, 128, 128)
    assert torch.allclose(z[:1], alone, atol=1e-3)
    assert torch.equal(seeded_noise((4, 2, 2), [3, 4])[:1], seeded_noise((4, 2, 2), [3]))


def test_truncated_and_foreign_files_are_refused(paths, tmp_path):
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(paths["noto"].with_suffix(suffix), tmp_path / f"model{suffix}")
    model = tmp_path / "model.safetensors"
    with pytest.raises(DitailError, match="nowhere.safetensors: does not exist"):
        load_model(tmp_path / "nowhere.safetensors")
    pickled = tmp_path / "model.ckpt"
    torch.save({}, pickled)
    with pytest.raises(DitailError, match=r"model\.ckpt: must be a \.safetensors file"):
        check_checkpoint(pickled)
    model.write_bytes(model.read_bytes()[:100_000])
    with pytest.raises(DitailError, match=r"model\.safetensors: can't be read; it may be truncated"):
        load_model(model)
    model.with_suffix(".yaml").write_text("model: 3")
    with pytest.raises(DitailError, match=r"model\.yaml: is not the yaml"):
        load_model(model)
    model.with_suffix(".yaml").unlink()
    with pytest.raises(DitailError, match=r"has no model\.yaml beside it"):
        load_model(model)


@pytest.mark.parametrize(("old", "new"), [
    ("num_heads: 8", "num_heads: 0"), ("num_heads: 8", "magic: 8"), ("linear_start: 0.00085", "linear_start: x"),
    ("scale_factor: 0.18215", "scale_factor: x"), ("image_size: 16", "image_size: x"),
    ("num_res_blocks: 2", "num_res_blocks: x"), ("target: ldm.models.autoencoder.AutoencoderKL", "target: 3"),
])
def test_a_yaml_of_nonsense_is_named(paths, tmp_path, old, new):
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(paths["noto"].with_suffix(suffix), tmp_path / f"model{suffix}")
    config = tmp_path / "model.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(DitailError, match=r"model\.yaml: is not the yaml"):
        check_checkpoint(tmp_path / "model.safetensors")
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("number", ["0.00085", "85e-5", "'0.00085'"])
def test_a_schedule_of_a_yaml_may_be_any_number(paths, tmp_path, number):
    """PyYAML reads 85e-5 as a text."""
    (tmp_path / "model.safetensors").symlink_to(paths["noto"])
    config = paths["noto"].with_suffix(".yaml").read_text()
    (tmp_path / "model.yaml").write_text(config.replace("linear_start: 0.00085", f"linear_start: {number}"))
    schedules = [read_schedule(read_config(path)) for path in (tmp_path / "model.safetensors", paths["noto"])]
    assert torch.equal(*schedules)


@pytest.mark.parametrize(("given", "words"), [
    ("parameterization: x0", "model.yaml: parameterization is 'x0'; the command line can use 'eps' or 'v'"),
    ("beta_schedule: cosine", "model.yaml: beta_schedule is 'cosine'; the command line can use 'linear'"),
    ("timesteps: 500", "model.yaml: timesteps is 500; the command line can use 1000"),
])
def test_a_model_of_another_schedule_or_prediction_is_refused(paths, tmp_path, given, words):
    """Its images would be noise."""
    (tmp_path / "model.safetensors").symlink_to(paths["noto"])
    config = yaml.safe_load(paths["noto"].with_suffix(".yaml").read_text())
    config["model"]["params"] |= yaml.safe_load(given)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DitailError, match=re.escape(words)):
        check_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("number", ["x", "-1", ".nan", "2", "[1]", "null"])
def test_a_schedule_of_nonsense_is_told_before_a_model_is_loaded(paths, content, tmp_path, capfd, number):
    (tmp_path / "model.safetensors").symlink_to(paths["noto"])
    config = paths["noto"].with_suffix(".yaml").read_text()
    (tmp_path / "model.yaml").write_text(config.replace("linear_start: 0.00085", f"linear_start: {number}"))
    assert main(mix_arguments(paths, content, tmp_path / "out.png", target=tmp_path / "model.safetensors")) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and f"{tmp_path}/model.yaml: is not the yaml of a latent diffusion model" in error[0]


def test_files_are_read_as_utf_8_whatever_the_locale(paths, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(paths["noto"])
    (tmp_path / "model.yaml").write_text(
        f"# für {chr(0x1f98a)}\n{paths['noto'].with_suffix('.yaml').read_text()}", encoding="utf-8")
    code = ("import sys\nfrom pathlib import Path\nfrom ditail.standalone import checkpoint_files, demo_checkpoints\n"
            "checkpoint_files.check_checkpoint(Path(sys.argv[1]) / 'model.safetensors')\n"
            "demo_checkpoints.held_out()\ndemo_checkpoints.write_checkpoints(Path(sys.argv[1]))")
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    # The switch makes Python warn of each file that is opened in the locale's encoding.
    process = subprocess.run([sys.executable, "-X", "warn_default_encoding", "-c", code, str(tmp_path)],
                             env=ascii_only, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "standalone" not in process.stderr, process.stderr


DEVICES = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}


@pytest.mark.parametrize(("available", "device", "dtype"), [
    ("", "cpu", torch.float32), ("mps", "mps", torch.float32), ("xpu", "xpu", torch.float32),
    ("xpu mps", "xpu", torch.float32), ("cuda xpu", "cuda", torch.float16),
])
def test_the_device_is_a_gpu_of_any_kind(monkeypatch, available, device, dtype):
    for name, module in DEVICES.items():
        monkeypatch.setattr(module, "is_available", lambda name=name: name in available.split())
    assert default_device() == torch.device(device) and default_dtype(device) == dtype
    if "xpu" not in available:
        monkeypatch.delattr(torch, "xpu")  # as in older versions of torch
        assert default_device() == torch.device(device)


def test_a_key_of_the_cache_has_the_device(paths, monkeypatch):
    checkpoint = FileLibrary().checkpoint(paths["noto"])
    keys = []
    for device in ("cpu", "cuda", "mps"):
        monkeypatch.setattr(host, "default_device", lambda device=device: torch.device(device))
        keys.append(cache_key(host.FileCheckpoints(checkpoint).fingerprint(checkpoint, None, ("", ""), {})))
    assert len(set(keys)) == 3


@pytest.mark.parametrize(("precision", "is_upcast"), [("fp32", True), ("fp16", False)])
def test_shared_attention_has_the_precision_of_ldms_own(paths, monkeypatch, precision, is_upcast):
    monkeypatch.setattr("ldm.modules.attention._ATTN_PRECISION", precision)
    assert FileTarget(lambda: None, FileLibrary().checkpoint(paths["noto"])).savings().upcast_attention is is_upcast


def test_the_sheet_of_the_demo_has_the_pillow_that_it_needs():
    """`load_default` takes a size from Pillow 10.1 on."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert "pillow>=10.1" in text.partition("standalone = [")[2].partition("]")[0]


def test_a_vae_that_gives_no_numbers_is_named(paths):
    model = load_model(paths["noto"])
    model.vae.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(DitailError, match="house-noto: its VAE gives pixels that are not finite"):
        model.decode(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(("error", "code", "words"), [
    (PermissionError(13, "Permission denied", "x.part"), 2, "out.png: can't be written (Permission denied)"),
    (OSError(28, "No space left on device"), 2, "out.png: can't be written (No space left on device)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory"),
    (MemoryError(), 1, "not enough memory"), (KeyboardInterrupt(), 130, "interrupted"),
])
def test_what_fails_while_the_image_is_written_is_told_and_leaves_no_file(paths, content, tmp_path, capfd,
                                                                           monkeypatch, error, code, words):
    def fail(image, path, *_, **__):
        path.write_bytes(b"half an image")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    assert main(mix_arguments(paths, content, tmp_path / "out.png", steps=1)) == code
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("ditail: ") and words in message
    assert [p.name for p in tmp_path.iterdir()] == ["content.png"]


def test_mix_writes_one_png_that_says_how_it_was_made(paths, content, tmp_path, capfd):
    out, latents = tmp_path / "mixed.png", tmp_path / "z.safetensors"
    assert main(mix_arguments(paths, content, out, save_latents=latents)) == 0
    image = Image.open(out)
    assert image.size == (128, 128)
    assert json.loads(image.text["ditail"])["prompt"] == "a fox on pink"
    output = capfd.readouterr()
    assert "inverting the content image: 100%" in output.err and "sampling: 100%" in output.err
    assert re.fullmatch(rf"{re.escape(str(out))} \(\d+\.\d s\)\n", output.out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["content.png", "mixed.png", "z.safetensors"]


def test_mix_takes_images_with_alpha_and_rotation(paths, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {"alpha.png": Image.new("RGBA", (200, 130), (255, 0, 0, 100)),
                "rotated.jpg": Image.new("RGB", (200, 130))}
    sizes = {}
    for name, image in images.items():
        image.save(tmp_path / name, **({"exif": exif} if name.endswith("jpg") else {}))
        out = tmp_path / f"{name}.out.png"
        assert main(mix_arguments(paths, tmp_path / name, out, steps=1)) == 0
        sizes[name] = Image.open(out).size
    assert sizes == {"alpha.png": (192, 128), "rotated.jpg": (128, 192)}


@pytest.mark.parametrize(("change", "words"), [
    ({"source": "nowhere.safetensors"}, "nowhere.safetensors: does not exist"),
    ({"image": "nowhere.png"}, "nowhere.png does not exist"),
    ({"image": __file__}, "is not an image that can be read"),
    ({"width": 100}, "width: must be a multiple of 8, here of 64 pixels, got 100"),
    ({"height": 136}, "height: must be a multiple of 8"),
    ({"out": f"{__file__}/folder/x.png"}, f"--out: the folder {__file__}/folder can't be made (Not a directory)"),
    ({"out": "x.bmp"}, "must be a .png file"),
    ({"save_latents": f"{__file__}/z"}, f"--save-latents: the folder {__file__} can't be made (File exists)"),
    ({"save_latents": "/"}, "--save-latents: / is a folder"),
    ({"mask": __file__}, "mask: "),
    ({"prompt": None}, "--prompt: say what "),
    ({"image": None}, "--image: "),
    ({"layers": "f99"}, "layers: SD 1.x/2.x has output blocks 0 to 11, and no 99"),
    ({"settings": __file__}, "--settings: "),
    ({"prompt": "a <lora:x:1> fox"}, "<lora:x:1>: extra networks work in the WebUI only"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(paths, content, tmp_path, capfd, change, words):
    options = {"out": tmp_path / "out.png", **change}
    assert main(mix_arguments(paths, content, **options)) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("ditail: ") and words in error[0]
    assert [p.name for p in tmp_path.iterdir()] == ["content.png"]


@pytest.mark.parametrize("change", [
    {"steps": 0}, {"steps": 1000}, {"steps": "x"}, {"conv_ratio": 1.5}, {"attn_ratio": -1}, {"alpha": "nan"},
    {"alpha": 11}, {"cfg": 0}, {"sampler": "magic"}, {"seed": -1}, {"prompt": "a \udcff fox"},
    {"negative_prompt": "\udcff"},
])
def test_bad_options_name_themselves(paths, content, tmp_path, capfd, change):
    with pytest.raises(SystemExit) as caught:
        main(mix_arguments(paths, content, tmp_path / "out.png", **change))
    assert caught.value.code == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1 and f"--{next(iter(change)).replace('_', '-')}" in error[0] and "usage" not in error[0]


@pytest.mark.parametrize("sampler", ["DDIM", "Heun", "DDIM (WebUI)"])
def test_progress_counts_the_steps_whatever_the_sampler_asks(paths, content, tmp_path, capfd, sampler):
    out = tmp_path / "folder" / "of its own" / "out.png"
    assert main(mix_arguments(paths, content, out, steps=5, sampler=sampler)) == 0
    bars = capfd.readouterr().err.replace("\r", "\n").splitlines()
    for name in ("inverting the content image", "sampling"):
        assert [line for line in bars if line.startswith(name)][-1].count(" 5/5 ") == 1
    assert out.is_file()


@pytest.mark.parametrize(("version", "words"), [
    ("/nowhere/text", "its text encoder's folder /nowhere/text is not there"),
    ("text", "its text encoder's folder text is not there"),
    ("nobody/nothing", "is neither a folder nor in the cache of downloads, and the Hugging Face hub can't be reached"),
])
@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:1"])
def test_a_text_encoder_that_is_nowhere_is_told_at_once(paths, content, tmp_path, capfd, monkeypatch, version, words,
                                                        proxy):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setattr(checkpoint_files.huggingface_hub.constants, "ENDPOINT", "https://127.0.0.1:1")
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(paths["noto"].with_suffix(suffix), tmp_path / f"other{suffix}")
    config = yaml.safe_load((tmp_path / "other.yaml").read_text())
    config["model"]["params"]["cond_stage_config"]["params"]["version"] = version
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    start = time.monotonic()
    assert main(mix_arguments(paths, content, tmp_path / "out.png", target=tmp_path / "other.safetensors")) == 2
    assert time.monotonic() - start < 10
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "other.yaml: " in error[0] and words in error[0]


def test_an_image_that_is_too_large_needs_a_size(paths, tmp_path, capfd):
    Image.new("1", (4000, 3000)).save(tmp_path / "photo.png")
    arguments = mix_arguments(paths, tmp_path / "photo.png", tmp_path / "out.png", steps=1)
    assert main(arguments) == 2
    assert "image: 4000x3000 is more than can be made at once; give --width and --height" in capfd.readouterr().err
    assert main([*arguments, "--width=128", "--height=128"]) == 0


def test_the_error_names_the_step_that_diverges(noto):
    with pytest.raises(DitailError, match=r"no longer finite at step 1 of 4 \(t = 1\); lower alpha"):
        inverted(noto, JOB, torch.full((1, 4, 16, 16), float("inf")))


@pytest.mark.slow
def test_demo_writes_the_contact_sheet(tmp_path, monkeypatch, capfd):
    from ditail.standalone import demo

    monkeypatch.setattr(demo, "DEMO", demo.DEMO.with_(steps=2))
    assert main(["demo", "--scene=44", f"--out={tmp_path / 'demo'}"]) == 0
    assert Image.open(tmp_path / "demo" / "contact_sheet.png").width > 1000
    assert len(list((tmp_path / "demo").glob("*.png"))) == 1 + 2 * 9
    assert "contact_sheet.png" in capfd.readouterr().out


def test_demo_copies_the_demo_checkpoints_into_a_webui(tmp_path, capfd):
    (tmp_path / "models/Stable-diffusion").mkdir(parents=True)
    assert main(["demo", f"--webui={tmp_path}"]) == 0
    models = [load_model(p) for p in sorted((tmp_path / "models/Stable-diffusion").glob("*.safetensors"))]
    assert [m.name for m in models] == ["house-flat", "house-ink", "house-noto"]
    assert_lora_leads_from(models[2], models[1], load_file(tmp_path / "models/Lora/house-ink-lora.safetensors"))
    assert main(["demo", "--webui=/nowhere"]) == 2
    assert "/nowhere has no models/Stable-diffusion" in capfd.readouterr().err


def assert_lora_leads_from(start, end, lora):
    """Applied to every layer that it names, as the WebUI applies LoRA, LoCon and whole differences."""
    weights = {name: value.clone() for name, value in start.unet.state_dict().items()}
    layers = {f"lora_unet_{name.replace('.', '_')}": name for name, _ in start.unet.named_modules()}
    for key, value in lora.items():
        layer, part = key.split(".", 1)
        if part == "lora_up.weight":
            weight, down = weights[f"{layers[layer]}.weight"], lora[f"{layer}.lora_down.weight"]
            weight += (value.float().flatten(1) @ down.float().flatten(1)).view_as(weight)
        elif part in ("diff", "diff_b"):
            weights[f"{layers[layer]}.{'weight' if part == 'diff' else 'bias'}"] += value
    assert all(torch.allclose(weights[name], value, atol=5e-3) for name, value in end.unet.state_dict().items())


def test_demo_checkpoints_whose_files_were_deleted_or_moved(paths, tmp_path, monkeypatch):
    """By a cleaner of /tmp, say, or because the cache is mounted elsewhere."""
    monkeypatch.setenv("DITAIL_CACHE", str(tmp_path / "cache"))
    folder = demo_checkpoints.cache_folder()
    shutil.copytree(paths["noto"].parent, folder)
    for name in ("house-ink.safetensors", "house-text/merges.txt"):
        (folder / name).unlink()
    kept = (folder / "house-noto.safetensors").stat()
    again = demo_checkpoints.paths()
    assert (folder / "house-text/merges.txt").is_file()
    assert again["ink"].read_bytes() == paths["ink"].read_bytes()
    assert (folder / "house-noto.safetensors").stat() == kept
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    config = again["noto"].with_suffix(".yaml")
    config.write_text(config.read_text().replace(str(paths["noto"].parent), str(tmp_path / "gone")))
    text = checkpoint_files.find_text(again["noto"], read_config(again["noto"])["cond_stage_config"])
    assert Path(text) == folder / "house-text"


def test_a_user_without_a_home_folder(monkeypatch, tmp_path, capfd):
    for name in ("HOME", "DITAIL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_entry(_):
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert main(["demo", f"--out={tmp_path}"]) == 2
    error = capfd.readouterr().err
    assert "no home folder; set DITAIL_CACHE" in error.splitlines()[-1] and "Traceback" not in error


def test_held_out_scenes_match_their_captions():
    scenes = demo_checkpoints.held_out()
    assert len(scenes.captions) == len(scenes.images["ink"]) >= 100
    assert len(set(scenes.captions)) > 60
    ink, noto = scenes.images["ink"][0], scenes.images["noto"][0]
    assert ink.getpixel((0, 0)) == noto.getpixel((0, 0))
    assert ink.tobytes() != noto.tobytes()
    assert tensor_to_images(torch.zeros(1, 3, 8, 8))[0].size == (8, 8)


def test_lightning_is_not_imported(paths):
    """It takes as long as everything else that a command imports; whoever wants it afterwards gets the real one."""
    code = (f"import sys\nfrom ditail.standalone.model import load_model\nload_model({str(paths['noto'])!r})\n"
            "print('pytorch_lightning' in sys.modules, 'ldm.models.autoencoder' in sys.modules)")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "True"]
