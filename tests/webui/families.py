"""Small checkpoints of every topology that the WebUI knows, with their yaml, for the tests.

Run by the WebUI's interpreter in the WebUI's folder, whose `repositories` have the modules: the U-Nets are the real
ones, with random weights of a fixed seed; text encoder and VAE are the demo checkpoints', so that images are not noise.
"""

import copy
import importlib
import shutil
import sys
from pathlib import Path

ATTENTION_EVERYWHERE = [4, 2, 1]
RESNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
LATENT_DIFFUSION = "ldm.models.diffusion.ddpm.LatentDiffusion"
CONTEXT = 128  # of the demo checkpoints' text encoder
OUTDIM = 32
SIZE_EMBEDDERS = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": 2,
    "attention_resolutions": ATTENTION_EVERYWHERE, "channel_mult": [1, 2, 2, 2], "use_spatial_transformer": True,
    "transformer_depth": 1, "context_dim": CONTEXT, "use_checkpoint": False, "legacy": False,
}
SD1 = {**UNET, "image_size": 16, "num_heads": 8}
SD2 = {**UNET, "image_size": 16, "num_head_channels": 64, "use_linear_in_transformer": True}
SDXL = {
    **UNET, "model_channels": 32, "num_head_channels": 32, "use_linear_in_transformer": True,
    "channel_mult": [1, 2, 4], "attention_resolutions": [4, 2], "transformer_depth": [1, 2, 10],
    "num_classes": "sequential", "adm_in_channels": 6 * OUTDIM, "spatial_transformer_attn_type": "softmax",
}
MMDIT = {"input_size": 16, "depth": 2, "in_channels": 16, "pos_embed_max_size": 32, "adm_in_channels": CONTEXT,
         "context_embedder_config": {"target": "torch.nn.Linear",
                                     "params": {"in_features": CONTEXT, "out_features": CONTEXT}}}


def main(models: Path) -> None:
    """Write the checkpoints into the WebUI's folder of checkpoints, which has the demo checkpoints."""
    import torch
    import yaml
    from safetensors.torch import load_file, save_file

    noto = load_file(models / "house-noto.safetensors")
    ink = load_file(models / "house-ink.safetensors")
    config = yaml.safe_load((models / "house-noto.yaml").read_text())
    text, vae = config["model"]["params"]["cond_stage_config"], config["model"]["params"]["first_stage_config"]
    shared = {k: v for k, v in noto.items() if k.startswith(("first_stage_model.", "cond_stage_model."))}

    as_sdxl = {k.replace("cond_stage_model.", "conditioner.embedders.0."): v for k, v in shared.items()}

    def write(name: str, tensors: dict, written: dict) -> None:
        save_file({k: v.half().contiguous() for k, v in tensors.items()}, models / f"{name}.safetensors",
                  metadata={"format": "pt"})
        (models / f"{name}.yaml").write_text(yaml.safe_dump(written, sort_keys=False))

    def changed(unet: dict, target: str = RESNET, model: str = LATENT_DIFFUSION, **params) -> dict:
        result = copy.deepcopy(config)
        result["model"]["target"] = model
        result["model"]["params"] |= {"unet_config": {"target": target, "params": unet}, **params}
        return result

    def random_unet(seed: int, unet: dict, target: str = RESNET) -> dict:
        package, _, name = target.rpartition(".")
        torch.manual_seed(seed)
        network = getattr(importlib.import_module(package), name)(**unet).eval()
        for parameter in network.parameters():
            if not parameter.any() and parameter.ndim > 1:  # ldm's zero_module, which would leave nothing to inject
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        # A random U-Net is no denoiser: a small answer keeps the way from the image to noise and back a smooth one.
        network.out[2].weight.data *= 0.3
        return {f"model.diffusion_model.{k}": v for k, v in network.state_dict().items()}

    # The WebUI tells checkpoints apart by their weights' hash, so no two have the same.
    for seed, name in enumerate(("eps-a", "eps-b", "v-a", "v-b")):
        prediction = name.partition("-")[0]
        write(f"sd2-{name}", {**random_unet(seed, SD2), **shared}, changed(SD2, parameterization=prediction))
        write(f"sdxl-{name}", {**random_unet(seed, SDXL, RESNET.replace("ldm", "sgm")), **as_sdxl},
              sdxl_config(text, vae, prediction))
    torch.save({"state_dict": load_file(models / "sdxl-eps-b.safetensors")}, models / "sdxl-pickle.ckpt")
    shutil.copy(models / "sdxl-eps-b.yaml", models / "sdxl-pickle.yaml")

    # Inpainting: the demo checkpoints' weights, with small ones for the mask and the masked image.
    for style, weights in (("noto", noto), ("ink", ink)):
        write(f"inpainting-{style}", with_channels(weights, 5),
              changed({**SD1, "in_channels": 9}, model="ldm.models.diffusion.ddpm.LatentInpaintDiffusion",
                      conditioning_key="hybrid", finetune_keys=None))
    write("pix2pix", with_channels(noto, 4),
          changed({**SD1, "in_channels": 8}, model="modules.models.diffusion.ddpm_edit.LatentDiffusion",
                  conditioning_key="hybrid", cond_stage_key="edit"))
    # The refiner's U-Net has SD 1.x's number of blocks, and four transformer blocks in each.
    refiner = {**SDXL, "channel_mult": [1, 2, 4, 4], "transformer_depth": 4}
    unet = RESNET.replace("ldm", "sgm")
    write("sdxl-refiner", {**random_unet(5, refiner, unet), **as_sdxl}, sdxl_config(text, vae, "eps", refiner))
    wide = with_channels({**random_unet(6, SDXL, unet), **as_sdxl}, 5)
    write("sdxl-inpainting", wide, sdxl_config(text, vae, "eps", {**SDXL, "in_channels": 9}))
    # Never run, so the WebUI may fill in zeros for the rest.
    write("sd3", {"model.diffusion_model.x_embedder.proj.weight": torch.zeros(64 * MMDIT["depth"], 16, 2, 2), **shared},
          changed(MMDIT, "ditail_test.TinyMMDiT"))


def with_channels(weights: dict, further: int) -> dict:
    """A checkpoint whose U-Net reads further channels, which count for little."""
    import torch

    name = "model.diffusion_model.input_blocks.0.0.weight"
    original = weights[name].float()
    torch.manual_seed(1)
    more = torch.randn(original.shape[0], further, *original.shape[2:]) * original.std() * 0.1
    return {**weights, name: torch.cat([original, more], 1)}


def sdxl_config(text: dict, vae: dict, prediction: str, unet: dict = SDXL) -> dict:
    diffusion = "sgm.modules.diffusionmodules"
    encoders = "sgm.modules.encoders.modules"
    embedders = [{"is_trainable": False, "input_key": "txt", "target": f"{encoders}.FrozenCLIPEmbedder",
                  "params": {**text["params"], "layer": "hidden", "layer_idx": 1}}]
    embedders += [{"is_trainable": False, "input_key": key, "target": f"{encoders}.ConcatTimestepEmbedderND",
                   "params": {"outdim": OUTDIM}} for key in SIZE_EMBEDDERS]
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": {
        "scale_factor": 0.18215, "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{diffusion}.denoiser.DiscreteDenoiser", "params": {
            "num_idx": 1000,
            "weighting_config": {"target": f"{diffusion}.denoiser_weighting.EpsWeighting"},
            "scaling_config": {"target": f"{diffusion}.denoiser_scaling.{prediction.capitalize()}Scaling"},
            "discretization_config": {"target": f"{diffusion}.discretizer.LegacyDDPMDiscretization"}}},
        "network_config": {"target": f"{diffusion}.openaimodel.UNetModel", "params": unet},
        "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": embedders}},
        "first_stage_config": {**vae, "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper"},
    }}}


if __name__ == "__main__":
    sys.path[:0] = [".", "repositories/stable-diffusion-stability-ai", "repositories/generative-models"]
    main(Path(sys.argv[1]))
