"""The demo checkpoints: a base and one low-rank difference per style, merged on first use."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import DitailError
from .files import make_folder, whole_file
from .names import ASSETS

STYLES = ("noto", "flat", "ink")
SIDE = 128
COLUMNS = 12
TEXT_FOLDER = "house-text"
STORED = torch.float16
UNET = "model.diffusion_model."


@dataclass(frozen=True)
class Scenes:
    """The held-out scenes: captions, and the true images by style."""

    captions: list[str]
    images: dict[str, list[Image.Image]]


def merge_low_rank(base: dict[str, Tensor], difference: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weight + up @ down` for every pair `<name>.up`, `<name>.down`; `<name>.add` is added as it is."""
    merged = {k: v.float() for k, v in base.items()}
    for key, value in difference.items():
        name, part = key.rsplit(".", 1)
        if part == "up":
            merged[name] += _low_rank(difference, name).view_as(merged[name])
        elif part == "add":
            merged[name] += value.float()
    return {k: v.to(STORED).contiguous() for k, v in merged.items()}


def write_checkpoints(folder: Path, moved_to: Path | None = None) -> dict[str, Path]:
    """Write `house-<style>.safetensors` and `.yaml` and the text encoder's folder to `folder`. Returns style -> path.

    The yaml has the absolute path of the text encoder, by which the WebUI finds it without a download; moved_to: the
    folder's final path, if it will be moved. Raises DitailError for a file that can't be written.
    """
    make_folder(folder / TEXT_FOLDER)
    for path in (ASSETS / "text").iterdir():
        with whole_file(folder / TEXT_FOLDER / path.name) as part:
            shutil.copyfile(path, part)
    config = yaml.safe_load((ASSETS / "demo.yaml").read_text(encoding="utf-8"))
    config["model"]["params"]["cond_stage_config"]["params"] = {
        "version": str(((moved_to or folder) / TEXT_FOLDER).resolve())}
    base = load_file(ASSETS / "base.safetensors")
    checkpoints = {}
    for style in STYLES:
        checkpoints[style] = folder / f"house-{style}.safetensors"
        with whole_file(checkpoints[style].with_suffix(".yaml")) as part:
            part.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        with whole_file(checkpoints[style]) as part:
            part.write_bytes(save(merge_low_rank(base, load_file(ASSETS / f"{style}.safetensors"))))
    return checkpoints


def write_lora(folder: Path) -> Path:
    """Write `house-ink-lora.safetensors` below `folder`, which makes of house-noto what house-ink is.

    Low-rank pairs (LoRA, LoCon) of both styles' differences from the base, and the whole difference where one has none;
    with the names that the WebUI and Forge read. Raises DitailError for what can't be written.
    """
    make_folder(folder)
    base = load_file(ASSETS / "base.safetensors")
    ink, noto = (load_file(ASSETS / f"{style}.safetensors") for style in ("ink", "noto"))
    path = folder / "house-ink-lora.safetensors"
    with whole_file(path) as part:
        part.write_bytes(save(lora_between(base, noto, ink)))
    return path


def lora_between(base: dict[str, Tensor], start: dict[str, Tensor], end: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA that leads from `base` with one low-rank difference (see `merge_low_rank`) to `base` with another."""
    lora = {}
    for key in end:
        name, part = key.rsplit(".", 1)
        module = name.rpartition(".")[0]
        layer = "lora_unet_" + module.removeprefix(UNET).replace(".", "_")
        if part == "add":
            # A bias. Its layer's weight is changed in full, too, as a layer has one kind of difference.
            weight = f"{module}.weight"
            lora[f"{layer}.diff"] = _low_rank(end, weight) - _low_rank(start, weight)
            lora[f"{layer}.diff_b"] = end[key] - start[key]
        elif part == "up" and f"{module}.bias.add" not in end:
            shape = base[name].shape
            down = torch.cat([end[f"{name}.down"], start[f"{name}.down"]])
            up = torch.cat([end[key], -start[key]], 1)
            lora[f"{layer}.lora_up.weight"] = up.view(*up.shape, *[1] * (len(shape) - 2))
            lora[f"{layer}.lora_down.weight"] = down.view(len(down), *shape[1:])
            lora[f"{layer}.alpha"] = torch.tensor(float(len(down)))
    return {k: v.to(STORED).contiguous() for k, v in lora.items()}


def _low_rank(difference: dict[str, Tensor], name: str) -> Tensor:
    return difference[f"{name}.up"].float() @ difference[f"{name}.down"].float()


@cache
def asset_digest() -> str:
    """A hash of the shipped weights, eight hex digits."""
    digest = hashlib.sha256()
    for path in sorted(ASSETS.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def cache_folder() -> Path:
    """Where the merged checkpoints are kept: `$DITAIL_CACHE`, else the user's cache folder.

    Raises DitailError if there is neither.
    """
    name = f"house-{asset_digest()}"
    if root := os.environ.get("DITAIL_CACHE"):
        return Path(root) / name
    try:
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise DitailError(None, "the demo checkpoints can't be kept, as this user has no home folder; set "
                          "DITAIL_CACHE to a folder") from error
    return Path(user_cache) / "ditail" / name


def paths() -> dict[str, Path]:
    """The demo checkpoints, style -> path; they are merged on first use, and again if a file has been deleted.

    Raises DitailError if the cache folder can't be written to.
    """
    folder = cache_folder()
    if not all((folder / name).is_file() for name in file_names()):
        try:
            write_folder(folder)
        except (OSError, DitailError) as error:
            raise DitailError(None, f"the demo checkpoints can't be kept in {folder} ({error}); set DITAIL_CACHE to "
                              "another folder") from error
    return {style: folder / f"house-{style}.safetensors" for style in STYLES}


def file_names() -> list[Path]:
    """The files that `write_checkpoints` writes, relative to its folder."""
    texts = [Path(TEXT_FOLDER) / path.name for path in (ASSETS / "text").iterdir()]
    return texts + [Path(f"house-{style}{suffix}") for style in STYLES for suffix in (".yaml", ".safetensors")]


def write_folder(folder: Path) -> None:
    """Write the files that are missing in the cache folder, each atomically: other processes may do the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        built = Path(part) / "house"
        write_checkpoints(built, folder)
        (folder / TEXT_FOLDER).mkdir(parents=True, exist_ok=True)
        for name in file_names():
            if not (folder / name).exists():
                (built / name).replace(folder / name)


def held_out() -> Scenes:
    """The scenes of the evaluation, which were not in the training data."""
    captions = json.loads((ASSETS / "held_out.json").read_text(encoding="utf-8"))
    return Scenes(captions, {style: _cut(Image.open(ASSETS / f"held_out_{style}.png"), len(captions))
                             for style in STYLES})


def _cut(sheet: Image.Image, count: int) -> list[Image.Image]:
    sheet = sheet.convert("RGB")
    corners = [(i % COLUMNS * SIDE, i // COLUMNS * SIDE) for i in range(count)]
    return [sheet.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners]


def write_sheet(images: list[Image.Image], path: Path) -> None:
    """Write images as the sheet that `held_out` reads."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(images) // COLUMNS) * SIDE))
    for i, image in enumerate(images):
        sheet.paste(image, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    sheet.save(path, optimize=True)


def classifier_path() -> Path:
    return ASSETS / "style_classifier.safetensors"
