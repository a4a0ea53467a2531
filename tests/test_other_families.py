"""SD 2.x checkpoints on the command line, and the sentences for those that it can't load."""

import re

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from ditail.method.schedule import alphas_cumprod_at
from ditail.standalone import checkpoint_files
from ditail.standalone.cli import main
from ditail.standalone.model import load_model
from tests.sd2_checkpoints import LAYERS, WIDTH, copied, open_clip, write_checkpoint
from tests.unets import SDXL, random_unet


@pytest.fixture(scope="module")
def sd2(paths, tmp_path_factory):
    """Two v-prediction checkpoints."""
    folder = tmp_path_factory.mktemp("sd2")
    return [write_checkpoint(folder / f"v-{seed}.safetensors", paths["noto"], seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def model(sd2):
    return load_model(sd2[0])


def test_prompts_are_encoded_as_open_clip_does(model):
    """By its last layer but one, padded with zeros."""
    prompts, tokenizer = ["a fox on mint", ""], model.text.tokenizer
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [[begin, *tokenizer(p, add_special_tokens=False).input_ids, end] for p in prompts]
    tokens = torch.tensor([row + [0] * (77 - len(row)) for row in ids])
    expected = open_clip(1)(tokens, LAYERS - 1)
    assert torch.allclose(model.encode_prompts(prompts), expected, atol=1e-5)
    assert not torch.allclose(open_clip(1)(tokens, LAYERS), expected, atol=1e-2)
    assert model.encode_prompts(["a fox, " * 60]).shape == (1, 231, WIDTH)


def test_a_v_prediction_becomes_eps(model):
    z, context = torch.randn(1, 4, 16, 16), model.encode_prompts(["a fox"])
    abar = float(alphas_cumprod_at(model.alphas_cumprod, torch.tensor([501.0])))
    v = model.unet(z, torch.tensor([501.0]), context=context)
    eps = model.eps(z, 501.0, context)
    # x_0 by v, and by eps.
    assert torch.allclose(abar**0.5 * z - (1 - abar) ** 0.5 * v, (z - (1 - abar) ** 0.5 * eps) / abar**0.5, atol=1e-3)


def test_a_checkpoint_of_eps_is_taken_as_it_is(sd2, paths, tmp_path):
    eps_model = load_model(write_checkpoint(tmp_path / "eps.safetensors", paths["noto"], 1, "eps"))
    z, context = torch.randn(1, 4, 16, 16), eps_model.encode_prompts(["a fox"])
    assert torch.equal(eps_model.eps(z, 501.0, context), eps_model.unet(z, torch.tensor([501.0]), context=context))


@pytest.mark.parametrize("command", ["mix", "matrix"])
def test_sd2_checkpoints_are_mixed(sd2, tmp_path, command):
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "in.png")
    common = ["--prompt=a fox", "--steps=2", "--cfg=2", f"--image={tmp_path / 'in.png'}"]
    if command == "mix":
        out = tmp_path / "out.png"
        assert main(["mix", f"--source={sd2[0]}", f"--target={sd2[1]}", f"--out={out}", *common]) == 0
        assert Image.open(out).size == (64, 64)
    else:
        assert main(["matrix", *map(str, sd2), f"--out={tmp_path / 'out'}", *common]) == 0
        assert len(list((tmp_path / "out").glob("*.png"))) == 5


def mix(source, target, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png")
    return main(["mix", f"--source={source}", f"--target={target}", f"--image={tmp_path / 'in.png'}", "--prompt=a fox",
                 f"--out={tmp_path / 'out.png'}", "--steps=1"])


def test_families_are_not_mixed(sd2, paths, tmp_path, capfd):
    assert mix(paths["noto"], sd2[0], tmp_path) == 2
    words = r"v-1\.safetensors: is SD 2\.x, .*house-noto\.safetensors is SD 1\.x: all must be of one family"
    assert re.search(words, capfd.readouterr().err)


def test_sdxl_is_refused_with_what_is_missing(paths, tmp_path, capfd):
    """Also without a yaml, which SDXL checkpoints hardly ever have."""
    weights = {f"model.diffusion_model.{k}": v.clone() for k, v in random_unet(SDXL, 1).state_dict().items()}
    save_file(weights, tmp_path / "xl.safetensors")
    assert mix(tmp_path / "xl.safetensors", paths["noto"], tmp_path) == 2
    words = r"xl\.safetensors: is SDXL; its U-Net and conditioner are in the package sgm, which is not on PyPI"
    assert re.search(words, capfd.readouterr().err)


def test_a_model_that_reads_an_image_is_refused(paths, tmp_path, capfd):
    other, name = copied(paths["noto"], tmp_path), "model.diffusion_model.input_blocks.0.0.weight"
    weights = load_file(other)
    weights[name] = torch.cat([weights[name], weights[name][:, :4], weights[name][:, :1]], 1)
    save_file(weights, other)
    assert mix(paths["ink"], other, tmp_path) == 2
    assert "other.safetensors: its U-Net has 9 input channels" in capfd.readouterr().err


def test_a_transformer_is_refused(paths, tmp_path, capfd):
    save_file({"model.diffusion_model.x_embedder.proj.weight": torch.zeros(1)}, tmp_path / "sd3.safetensors")
    assert mix(paths["ink"], tmp_path / "sd3.safetensors", tmp_path) == 2
    assert "sd3.safetensors: is SD3; the command line can load SD 1.x and SD 2.x" in capfd.readouterr().err


@pytest.mark.parametrize(("change", "words"), [
    ({"layer": "pooled"}, "is not the yaml of a latent diffusion model (KeyError: 'pooled')"),
    ({"version": "laion2b_s32b_b79k"}, "its text encoder openai/clip-vit-large-patch14 is neither a folder nor in the"),
])
def test_what_is_wrong_with_a_text_encoder_is_told(sd2, tmp_path, capfd, monkeypatch, change, words):
    monkeypatch.setattr(checkpoint_files, "is_in_hub_cache", lambda name: False)
    monkeypatch.setattr(checkpoint_files, "is_hub_reachable", lambda: False)
    other = copied(sd2[0], tmp_path)
    config = yaml.safe_load(other.with_suffix(".yaml").read_text())
    config["model"]["params"]["cond_stage_config"]["params"] |= change
    other.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    assert mix(other, sd2[1], tmp_path) == 2
    assert words in capfd.readouterr().err


def test_a_text_encoder_that_is_missing_is_told(sd2, tmp_path, capfd):
    other = copied(sd2[0], tmp_path)
    save_file({k: v for k, v in load_file(other).items() if "mlp.c_fc" not in k}, other)
    assert mix(other, sd2[1], tmp_path) == 2
    assert "other.safetensors: cond_stage_model.model.* is missing or of another layout" in capfd.readouterr().err
