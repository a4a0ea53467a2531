"""Runs inside the Forge under test: lets it recognise small checkpoints, the demo's and those of `forge_families`.

Forge tells a checkpoint's family by SD's own widths, and reads tokenizer and configurations from a folder.
"""

import json
import shutil
from pathlib import Path

from backend import loader
from huggingface_guess import model_list, utils
from modules import paths

import ditail

TEXT = Path(ditail.__file__).parent / "standalone" / "assets" / "text"
FOLDER = Path(paths.data_path) / "ditail-test-models"
WIDTH = 128  # of the demo checkpoints' text encoder


def small_repository(model) -> str:
    """A folder like Forge's own for a model, with the demo checkpoints' text encoder and VAE."""
    folder = FOLDER / model.__name__
    if folder.exists():
        return str(folder)
    shutil.copytree(Path(loader.dir_path) / "huggingface" / model.huggingface_repo, folder)
    for number in ("", "_2"):
        if not (folder / f"text_encoder{number}").exists():
            continue
        shutil.copy(TEXT / "config.json", folder / f"text_encoder{number}")
        for file in TEXT.iterdir():
            if file.name != "config.json":
                shutil.copy(file, folder / f"tokenizer{number}")
        (folder / f"tokenizer{number}" / "special_tokens_map.json").unlink(missing_ok=True)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [64] * 4,
                                  "layers_per_block": 0, "scaling_factor": 0.18215}))
    return str(folder)


class DemoSD15(model_list.SD15):
    huggingface_repo = small_repository(model_list.SD15)
    unet_config = {**model_list.SD15.unet_config, "model_channels": 64, "context_dim": WIDTH}


class SmallSD20(model_list.SD20):
    huggingface_repo = small_repository(model_list.SD20)
    unet_config = {**model_list.SD20.unet_config, "model_channels": 64, "context_dim": WIDTH}

    def process_clip_state_dict(self, state_dict):
        """The demo checkpoints' text encoder has the names of SD 1.x's."""
        return utils.state_dict_prefix_replace(state_dict, {"cond_stage_model.": "clip_h."}, filter_keys=True)


class SmallSDXL(model_list.SDXL):
    huggingface_repo = small_repository(model_list.SDXL)
    unet_config = {**model_list.SDXL.unet_config, "model_channels": 32, "context_dim": 2 * WIDTH,
                   "adm_in_channels": WIDTH + 6 * 256}


SMALL = (DemoSD15, SmallSD20, SmallSDXL)
NAMES = [model.__name__ for model in SMALL]  # "Reload UI" runs this file again
model_list.models[:] = [*SMALL, *(model for model in model_list.models if model.__name__ not in NAMES)]
