"""Small checkpoints of SD 2.x and SDXL for Forge, which `forge_extension` lets it recognise.

Run by Forge's interpreter in Forge's folder: the U-Nets are Forge's own, with random weights of a fixed seed; text
encoders and VAE are the demo checkpoints', so that images are images.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORGE_FLAGS = ["--always-cpu"]
COMMON = {"in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "use_linear_in_transformer": True,
          "num_heads": -1, "num_head_channels": 64}
SD2 = {**COMMON, "model_channels": 64, "context_dim": 128, "channel_mult": [1, 2, 2, 2], "num_res_blocks": [2] * 4,
       "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
       "transformer_depth_output": [1] * 9 + [0] * 3}
# Both text encoders' width, and beside the second one's vector six numbers of 256 values each.
SDXL = {**COMMON, "model_channels": 32, "context_dim": 2 * 128, "channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3,
        "num_classes": "sequential", "adm_in_channels": 128 + 6 * 256, "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
SCALINGS = {"eps": "EpsScaling", "v": "VScaling"}


def random_unet(seed: int, config: dict) -> dict:
    import torch
    from backend.nn.unet import IntegratedUNet2DConditionModel

    torch.manual_seed(seed)
    unet = IntegratedUNet2DConditionModel(**{k: list(v) if isinstance(v, list) else v for k, v in config.items()})
    # A random U-Net is no denoiser: a small answer keeps the way from the image to noise and back a smooth one.
    unet.out[2].weight.data *= 0.3
    return {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}


def two_text_encoders(text: dict) -> dict:
    """SDXL's names for a text encoder that is both of SDXL's."""
    import torch

    names = ("conditioner.embedders.0.", "conditioner.embedders.1.model.")
    both = {name.replace("cond_stage_model.", new): value for new in names for name, value in text.items()}
    return {**both, f"{names[1]}transformer.text_projection.weight": torch.eye(128)}


def yaml_of(family: str, prediction: str) -> dict:
    """What Forge reads of a checkpoint's yaml."""
    if family == "sd2":
        return {"model": {"params": {"parameterization": prediction}}}
    scaling = {"target": f"sgm.modules.diffusionmodules.denoiser_scaling.{SCALINGS[prediction]}"}
    return {"model": {"params": {"denoiser_config": {"params": {"scaling_config": scaling}}}}}


def main(models: Path) -> None:
    """Write the checkpoints into Forge's folder of checkpoints, which has the demo checkpoints in it."""
    import torch
    import yaml
    from safetensors.torch import load_file, save_file

    from tests.webui.families import with_channels

    house = load_file(models / "house-noto.safetensors")
    vae = {name: value for name, value in house.items() if name.startswith("first_stage_model.")}
    text = {name: value for name, value in house.items() if name.startswith("cond_stage_model.")}
    kinds = {"sd2": (SD2, text), "sdxl": (SDXL, two_text_encoders(text))}

    def write(name: str, tensors: dict) -> None:
        save_file({k: v.half().clone().contiguous() for k, v in tensors.items()}, models / f"{name}.safetensors",
                  metadata={"format": "pt"})

    for family, (config, encoders) in kinds.items():
        for seed, name in enumerate(("eps-a", "eps-b", "v-a", "v-b")):
            write(f"{family}-{name}", {**random_unet(seed, config), **encoders, **vae})
            written = yaml.safe_dump(yaml_of(family, name.partition("-")[0]))
            (models / f"{family}-{name}.yaml").write_text(written)
    torch.save({"state_dict": load_file(models / "sdxl-eps-b.safetensors")}, models / "sdxl-pickle.ckpt")
    for style in ("noto", "ink"):
        write(f"inpainting-{style}", with_channels(load_file(models / f"house-{style}.safetensors"), 5))
    write("pix2pix", with_channels(house, 4))
    write("sd3", {"model.diffusion_model.x_embedder.proj.weight": torch.zeros(128, 16, 2, 2), **text, **vae})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.path[:0] = [".", "packages_3rdparty", "repositories/huggingface_guess", str(ROOT)]
    sys.argv = [sys.argv[0], *FORGE_FLAGS]
    main(folder)
