"""How many images of SD 2.x and SDXL are not finite, over alpha, beta and CFG scale; prints a table.

    SD_WEBUI_DIR=... SD_WEBUI_PYTHON=... python -m tests.webui.measure_numbers

The checkpoints are those of `families.py`, whose weights are random: colours mean nothing there, NaN does.
"""

import tempfile
from collections import Counter
from itertools import product
from pathlib import Path

from PIL import Image

from tests.webui.data_folder import ASSETS, prepare, write_families
from tests.webui.server import running
from tests.webui.webui_helpers import SIDE, encode

ALPHAS, BETAS, CFGS = (0.0, 3.0, 10.0), (0.0, 0.5, 10.0), (0.0, 7.0, 30.0)
FAMILIES = {"SD 2.x, eps": "sd2-eps", "SD 2.x, v": "sd2-v", "SDXL, eps": "sdxl-eps", "SDXL, v": "sdxl-v"}
STEPS = 10


def outcome(answer) -> str:
    """`finite`, `black`, `not finite` or an error."""
    if answer.status == 200:
        return "black" if answer.image.getextrema() == ((0, 0),) * 3 else "finite"
    message = f"{answer.error} {answer.json.get('errors', '')}"
    return "not finite" if "finite" in message or "NaN" in message else f"{answer.status}: {message[:80]}"


def main() -> None:
    content = encode(Image.open(ASSETS / "held_out_noto.png").convert("RGB").crop((0, 0, SIDE, SIDE)))
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder))
        write_families(data)
        with running(data, "--no-half") as webui:
            print("| family | images | " + " | ".join(f"CFG {c:g}: not finite" for c in CFGS) + " | else |")
            print("|---" * (len(CFGS) + 3) + "|")
            for family, name in FAMILIES.items():
                outcomes = {cfg: Counter() for cfg in CFGS}
                for alpha, beta, cfg in product(ALPHAS, BETAS, CFGS):
                    settings = {"image": content, "source_checkpoint": f"{name}-a", "alpha": alpha, "beta": beta}
                    target = {"sd_model_checkpoint": f"{name}-b"}
                    outcomes[cfg][outcome(webui.generate(settings, steps=STEPS, cfg_scale=cfg, negative_prompt="blurry",
                                                      override_settings=target))] += 1
                bad = [outcomes[cfg]["not finite"] + outcomes[cfg]["black"] for cfg in CFGS]
                counts = sum(outcomes.values(), Counter())
                other = {k: n for k, n in counts.items() if k not in ("finite", "not finite", "black")}
                print(f"| {family} | {counts.total()} | " + " | ".join(map(str, bad)) + f" | {other or 'none'} |",
                      flush=True)


if __name__ == "__main__":
    main()
