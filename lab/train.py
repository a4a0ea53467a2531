"""`python -m lab train`: trains the demo checkpoints and writes `ditail/standalone/assets`.

Takes under two hours on two cores. A stage whose file is in the build folder is skipped.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from ditail.standalone import demo_checkpoints

from .training import text, unet, vae
from .training.art import STYLES, Art, fetch_art, held_out_scenes, random_scene
from .training.classifier import accuracies, train_classifier

SCENES = 10_000
HELD_OUT = 120


def command(args: argparse.Namespace) -> None:
    """Run `python -m lab train` (options: `lab.cli.add_train`): the stages that are not done, then the assets."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    args.build.mkdir(parents=True, exist_ok=True)
    fetch_art(args.build / "art")
    art = Art(args.build / "art")
    autoencoder = vae_stage(args, art)
    latents = latents_stage(args, art, autoencoder)
    text.write_tokenizer(args.build / "text")
    base = base_stage(args, latents)
    differences = {style: style_stage(args, latents, base, i) for i, style in enumerate(STYLES)}
    decoder_stage(args, art, autoencoder)
    args.assets.mkdir(parents=True, exist_ok=True)
    classifier = train_classifier(art, autoencoder, args.minutes_classifier, random.Random(5))
    print("style classifier, share right on held-out art:", accuracies(classifier, art, autoencoder))
    save_half(classifier.state_dict(), args.assets / demo_checkpoints.classifier_path().name)
    write_assets(args.assets, args.build / "text", art, autoencoder, base, differences)


def vae_stage(args, art: Art) -> vae.Autoencoder:
    path = args.build / "vae.pt"
    if not path.exists():
        torch.save(vae.train_vae(art, args.minutes_vae, random.Random(1)).state_dict(), path)
    autoencoder = vae.Autoencoder().to(memory_format=torch.channels_last)
    autoencoder.load_state_dict(torch.load(path))
    return autoencoder.eval().requires_grad_(False)


def latents_stage(args, art: Art, autoencoder: vae.Autoencoder) -> unet.Latents:
    path = args.build / "latents.pt"
    if not path.exists():
        rng = random.Random(2)
        torch.save(unet.encode_scenes(art, autoencoder, [random_scene(rng) for _ in range(SCENES)]), path)
    return torch.load(path, weights_only=False)


def base_stage(args, latents: unet.Latents) -> dict:
    """The state dicts of the base U-Net ("unet") and of the text model ("text")."""
    path = args.build / "base.pt"
    if not path.exists():
        loss = unet.DenoisingLoss(latents, text.load_tokenizer(args.build / "text"), range(len(STYLES)),
                                  random.Random(3))
        unet.train_base(loss, text.new_text_model(args.build / "text"), args.minutes_base, path)
    return torch.load(path)


def style_stage(args, latents: unet.Latents, base: dict, style: int) -> dict:
    """The low-rank difference of a style, `{weight name: (up, down)}`."""
    name = list(STYLES)[style]
    path = args.build / f"{name}.pt"
    if not path.exists():
        text_model = text.new_text_model(args.build / "text")
        text_model.load_state_dict(base["text"])
        loss = unet.DenoisingLoss(latents, text.load_tokenizer(args.build / "text"), [style], random.Random(4))
        folded = unet.fold_label(unet.base_unet(base["unet"]), style)
        torch.save(unet.train_style(folded, text_model, loss, name, args.minutes_style), path)
    return torch.load(path)


def decoder_stage(args, art: Art, autoencoder: vae.Autoencoder) -> None:
    """Train only the decoder further, so that the latents on which the U-Nets were trained do not change."""
    path = args.build / "decoder.pt"
    if not path.exists():
        vae.train_decoder(autoencoder, art, args.minutes_decoder, random.Random(6))
        torch.save(autoencoder.state_dict(), path)
    autoencoder.load_state_dict(torch.load(path))


def write_assets(folder: Path, text_folder: Path, art: Art, autoencoder, base: dict, differences: dict) -> None:
    """Write everything that `ditail.standalone.demo_checkpoints` reads, with weights in float16."""
    plain = unet.plain_state(base["unet"])
    state = {f"model.diffusion_model.{k}": v for k, v in plain.items()}
    state |= {f"first_stage_model.{k}": v for k, v in autoencoder.state_dict().items()}
    state |= {f"cond_stage_model.transformer.text_model.{k.removeprefix('text_model.')}": v
              for k, v in base["text"].items() if not k.endswith("position_ids")}
    save_half(state, folder / "base.safetensors")
    for i, (style, difference) in enumerate(differences.items()):
        parts = {f"model.diffusion_model.{k}.{part}": v for k, pair in difference.items()
                 for part, v in zip(("up", "down"), pair, strict=True)}
        parts["model.diffusion_model.time_embed.2.bias.add"] = base["unet"]["label_emb.weight"][i]
        save_half(parts, folder / f"{style}.safetensors")
    (folder / "demo.yaml").write_text(yaml.safe_dump(ldm_config(), sort_keys=False))
    shutil.copytree(text_folder, folder / "text", dirs_exist_ok=True)
    scenes = held_out_scenes(HELD_OUT)
    (folder / "held_out.json").write_text(json.dumps([s.caption for s in scenes], indent=0))
    for style in STYLES:
        demo_checkpoints.write_sheet([art.render(s, style) for s in scenes], folder / f"held_out_{style}.png")


def save_half(state: dict, path: Path) -> None:
    save_file({k: v.detach().half().contiguous() for k, v in state.items()}, path)


def ldm_config() -> dict:
    """The config of an SD 1.x checkpoint with the sizes of the demo checkpoints."""
    return {"model": {"base_learning_rate": 1.0e-4, "target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {
        "linear_start": 0.00085, "linear_end": 0.0120, "num_timesteps_cond": 1, "log_every_t": 200, "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 16, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "crossattn", "monitor": "val/loss_simple_ema",
        "scale_factor": vae.SCALE_FACTOR, "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet.UNET_CONFIG},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {
            "embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": vae.DDCONFIG,
            "lossconfig": {"target": "torch.nn.Identity"}}},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {}},
    }}}
