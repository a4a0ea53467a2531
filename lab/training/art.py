"""Scenes of emoji art: the same layouts and captions in every style.

The art comes from npm's `@iconify-json` packages (Noto: Apache-2.0, Fluent: MIT); `fetch_art` installs
them with npm; everything else reads that folder.
"""

import io
import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import resvg_py
from PIL import Image

STYLES = {
    "noto": "noto",
    "flat": "fluent-emoji-flat",
    "ink": "fluent-emoji-high-contrast",
}
VERSIONS = {"noto": "1.2.9", "fluent-emoji-flat": "1.2.6", "fluent-emoji-high-contrast": "1.2.6"}
CONCEPTS = (
    "fox", "panda", "frog", "pig-face", "rabbit-face", "bear", "lion", "red-apple", "pear", "strawberry",
    "cherries", "watermelon", "avocado", "mushroom", "cactus", "evergreen-tree", "house", "castle",
    "sailboat", "automobile", "crown", "gem-stone", "umbrella", "light-bulb", "star", "sun", "snowman",
    "teapot", "doughnut", "wrapped-gift",
)
BACKGROUNDS = {
    "pink": (250, 205, 215),
    "peach": (252, 220, 190),
    "cream": (250, 240, 200),
    "mint": (200, 238, 212),
    "blue": (196, 222, 248),
    "lilac": (222, 208, 246),
}
INK = "#1c1c1c"
SIDE = 128
SPRITE_SIDE = 160


def fetch_art(folder: Path) -> None:
    """Install the art packages with npm below `folder`, if they are not there."""
    packages = [f"@iconify-json/{name}@{VERSIONS[name]}" for name in STYLES.values()]
    if not all((folder / "node_modules" / p.rsplit("@", 1)[0]).is_dir() for p in packages):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages], check=True)


def word(concept: str) -> str:
    """A concept in a caption: "red apple" for `red-apple`."""
    return concept.replace("-face", "").replace("-", " ")


@dataclass(frozen=True)
class Scene:
    """A layout: the background's name and colour, and (concept, size, x, y) in pixels of each object."""

    background: str
    colour: tuple[int, int, int]
    objects: tuple[tuple[str, int, int, int], ...]

    @property
    def caption(self) -> str:
        """For example "a fox and a pear on mint"."""
        return " and ".join(f"a {word(o[0])}" for o in self.objects) + f" on {self.background}"


def random_scene(rng: random.Random) -> Scene:
    """One object of 76 to 112 px anywhere, or (one time in four) two of 60 to 64 px side by side."""
    background = rng.choice(sorted(BACKGROUNDS))
    colour = tuple(min(255, max(0, c + rng.randint(-4, 4))) for c in BACKGROUNDS[background])
    if rng.random() < 0.25:
        left, right = rng.sample(CONCEPTS, 2)
        sizes = [rng.randint(60, 64) for _ in range(2)]
        objects = (
            (left, sizes[0], rng.randint(0, 2), rng.randint(8, SIDE - 8 - sizes[0])),
            (right, sizes[1], SIDE - sizes[1] - rng.randint(0, 2), rng.randint(8, SIDE - 8 - sizes[1])),
        )
    else:
        size = rng.randint(76, 112)
        objects = ((rng.choice(CONCEPTS), size, rng.randint(2, SIDE - 2 - size), rng.randint(2, SIDE - 2 - size)),)
    return Scene(background, colour, objects)


def held_out_scenes(count: int) -> list[Scene]:
    """The scenes of the evaluation; training has other seeds."""
    rng = random.Random("held out")
    return [random_scene(rng) for _ in range(count)]


class Art:
    """Renders scenes; sprites are rasterised once for each style and concept."""

    def __init__(self, folder: Path):
        self.sprites = {}
        for style, package in STYLES.items():
            icons = json.loads((folder / "node_modules/@iconify-json" / package / "icons.json").read_text())
            for concept in CONCEPTS:
                self.sprites[style, concept] = rasterise(icons, concept)

    def render(self, scene: Scene, style: str) -> Image.Image:
        """RGB image of `SIDE` x `SIDE` pixels."""
        image = Image.new("RGB", (SIDE, SIDE), scene.colour)
        for concept, size, x, y in scene.objects:
            sprite = self.sprites[style, concept].resize((size, size), Image.Resampling.LANCZOS)
            image.paste(sprite, (x, y), sprite)
        return image


def rasterise(icons: dict, name: str) -> Image.Image:
    """RGBA sprite of `SPRITE_SIDE` pixels of one icon of an Iconify set."""
    icon = icons["icons"][name]
    box = [icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'color="{INK}" width="{SPRITE_SIDE}" height="{SPRITE_SIDE}" viewBox="{" ".join(map(str, box))}">'
        f"{icon['body']}</svg>"
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
