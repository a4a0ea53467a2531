"""Runs inside the Forge under test: lets it recognise the demo checkpoints, which are smaller than SD 1.5.

Forge tells a checkpoint's family by SD's own widths, and reads tokenizer and configurations from a folder.
"""

import json
import shutil
from pathlib import Path

from backend import loader
from huggingface_guess import model_list
from modules import paths

import ditail

TEXT = Path(ditail.__file__).parent / "standalone" / "assets" / "text"
FOLDER = Path(paths.data_path) / "ditail-test-sd15"


def write_folder() -> None:
    """A folder like Forge's own for SD 1.5, with the demo checkpoints' text encoder and VAE."""
    if FOLDER.exists():
        return
    shutil.copytree(Path(loader.dir_path) / "huggingface" / model_list.SD15.huggingface_repo, FOLDER)
    shutil.copy(TEXT / "config.json", FOLDER / "text_encoder")
    for file in TEXT.iterdir():
        if file.name != "config.json":
            shutil.copy(file, FOLDER / "tokenizer")
    (FOLDER / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    config = FOLDER / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [64] * 4,
                                  "layers_per_block": 0, "scaling_factor": 0.18215}))


class DemoSD15(model_list.SD15):
    huggingface_repo = str(FOLDER)
    unet_config = {**model_list.SD15.unet_config, "model_channels": 64, "context_dim": 128}


write_folder()
model_list.models[:] = [DemoSD15, *(model for model in model_list.models if model.__name__ != "DemoSD15")]
