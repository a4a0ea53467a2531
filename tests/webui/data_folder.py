"""The data folder of a WebUI for the tests: this extension, the demo checkpoints, and files made for the tests."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.webui.server import FOLDER, IS_FORGE, PYTHON
from tests.webui.webui_helpers import SIDE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ASSETS = ROOT / "ditail" / "standalone" / "assets"


def scene(number: int) -> Image.Image:
    """A held-out scene of the demo checkpoints in the style noto."""
    sheet = Image.open(ASSETS / "held_out_noto.png").convert("RGB")
    row, column = divmod(number, sheet.width // SIDE)
    return sheet.crop((column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE))


def prepare(data: Path) -> Path:
    """A data folder for a WebUI with the demo checkpoints, this extension and that of the tests."""
    models = data / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    (data / "models" / "Lora").mkdir()
    subprocess.run([sys.executable, "-m", "ditail", "demo", "--webui", str(data)], check=True, cwd=ROOT)
    write_other_checkpoints(models)
    write_lora(data / "models" / "Lora" / "test-lora.safetensors", models / "house-noto.safetensors")
    write_vae(data / "models" / "VAE" / "test.vae.safetensors", models / "house-noto.safetensors")
    (data / "extensions").mkdir()
    (data / "extensions" / "ditail").symlink_to(ROOT)
    copy_probe(data / "extensions" / "ditail-test-probe")
    if controlnet := os.environ.get("SD_WEBUI_CONTROLNET_DIR"):
        (data / "extensions" / "sd-webui-controlnet").symlink_to(controlnet)
    (data / "config.json").write_text(json.dumps({"show_progress_type": "Approx cheap", "samples_save": False,
                                                  "sd_model_checkpoint": "house-ink.safetensors"}))
    return data


def copy_probe(folder: Path) -> None:
    """Copy the tests' extension; for Forge its own files, and those of the WebUI's that work in both."""
    if not IS_FORGE:
        shutil.copytree(HERE / "probe_extension", folder)
        return
    shutil.copytree(HERE / "forge_extension", folder)
    for name in ("caches", "calls", "faults", "neighbours"):
        shutil.copy(HERE / "probe_extension" / "scripts" / f"ditail_test_{name}.py", folder / "scripts")


def write_families(data: Path) -> None:
    script = HERE / ("forge_families.py" if IS_FORGE else "families.py")
    subprocess.run([PYTHON, script, data / "models" / "Stable-diffusion"], check=True, cwd=FOLDER, capture_output=True)


def write_other_checkpoints(models: Path) -> None:
    """A checkpoint with the shapes of another architecture, and a file that is none."""
    import torch
    from safetensors.torch import save_file

    unet = "model.diffusion_model."
    save_file({
        f"{unet}input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3),
        f"{unet}output_blocks.8.0.in_layers.0.weight": torch.zeros(8),
        f"{unet}middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 2048),
    }, models / "other-architecture.safetensors", metadata={"format": "pt"})
    (models / "broken.safetensors").write_bytes(b"no checkpoint at all" * 1000)


def write_lora(path: Path, checkpoint: Path) -> None:
    """A LoRA that changes one projection of the demo checkpoints' U-Net."""
    import torch
    from safetensors.torch import load_file, save_file

    weight = load_file(checkpoint)["model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn1.to_v.weight"]
    torch.manual_seed(0)
    name = "lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_v"
    save_file({
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2) * 2,
        f"{name}.lora_down.weight": torch.randn(2, weight.shape[1]), f"{name}.alpha": torch.tensor(2.0),
    }, path)


def write_vae(path: Path, checkpoint: Path) -> None:
    """Write a VAE that differs slightly from a checkpoint's."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    prefix = "first_stage_model."
    weights = {name.removeprefix(prefix): weight * (1 + 0.02 * torch.randn_like(weight))
               for name, weight in load_file(checkpoint).items() if name.startswith(prefix)}
    path.parent.mkdir(exist_ok=True)
    save_file(weights, path)
