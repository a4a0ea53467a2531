"""What is kept between jobs: never used where it would change an image, and as large as the settings say."""

import os
import shutil

import pytest
import torch
from safetensors import safe_open

from tests.webui.browser import show_tab
from tests.webui.server import IS_FORGE, LOADS_TO_GO_BACK
from tests.webui.webui_helpers import negate_lora

STEPS = 6
LORA = "a fox on pink <lora:test-lora:{}>"
HYPER = "a fox on pink <hypernet:test-hyper:{}>"
CONTEXT_WIDTH = 128
# What changes the features that the target makes of the same source latents.
TARGETS = {
    "plain": {}, "LoRA": {"prompt": LORA.format(1)}, "half of it": {"prompt": LORA.format(0.5)},
    "only in the text encoder": {"prompt": LORA.format("1:0")}, "hypernetwork": {"prompt": HYPER.format(1)},
    "half of that": {"prompt": HYPER.format(0.5)}, "another extension": {"alwayson_scripts": "a word"},
    "checkpoint": {"override_settings": {"sd_model_checkpoint": "house-flat"}},
    "default LoRA": {"options": {"sd_lora": "test-lora"}}, "precision": {"options": {"upcast_attn": True}},
    "attention": {"options": {"cross_attention_optimization": "Doggettx"}},
}
NOT_ON_FORGE = ("hypernetwork", "half of that", "attention")
if IS_FORGE:
    TARGETS = {name: target for name, target in TARGETS.items() if name not in NOT_ON_FORGE}
DIFFERENT = [name for name in ("plain", "LoRA", "half of it", "hypernetwork", "half of that", "checkpoint")
             if name in TARGETS]


@pytest.fixture(scope="module", autouse=True)
def hypernetwork(webui):
    """A hypernetwork of the demo models' cross-attention."""
    torch.manual_seed(0)

    def layers():
        sizes = ((0, CONTEXT_WIDTH), (1, CONTEXT_WIDTH))
        return {f"linear.{i}.{name}": torch.randn(*shape) * 0.05 for i, n in sizes
                for name, shape in (("weight", (n, n)), ("bias", (n,)))}

    folder = webui.data / "models" / "hypernetworks"
    folder.mkdir(exist_ok=True)
    # The WebUI refuses the files of a newer torch as unsafe; the old layout has not changed.
    torch.save({CONTEXT_WIDTH: (layers(), layers()), "layer_structure": [1, 1, 1]}, folder / "test-hyper.pt",
               _use_new_zipfile_serialization=False)
    webui.call("/ditail-test/restart", {})


def caches(webui) -> dict:
    return webui.call("/ditail-test/caches").json


def hot_steps(webui, *args, **kwargs) -> tuple[int, bytes]:
    """An image, and how many of its steps took their features from the cache."""
    before = caches(webui)["hits"]
    image = webui.generate(*args, **{"steps": STEPS, **kwargs}).image.tobytes()
    return caches(webui)["hits"] - before, image


def without_features(webui, options, *args, **kwargs) -> bytes:
    options(ditail_features_mb=0)
    image = webui.generate(*args, **{"steps": STEPS, **kwargs}).image.tobytes()
    options(ditail_features_mb=512)
    return image


@pytest.fixture
def mixed(ditail):
    """Source latents that depend on nothing but themselves."""
    return {**ditail, "source_prompt": "a fox on pink", "alpha": 7.25}


def test_features_serve_other_prompts_seeds_and_scales(webui, options, mixed):
    assert hot_steps(webui, mixed)[0] == 0
    for asked in ({}, {"prompt": "a cat on mint", "cfg_scale": 9, "seed": 3, "batch_size": 2}):
        hits, hot = hot_steps(webui, mixed, **asked)
        assert hits == int(0.8 * STEPS)
        assert hot == without_features(webui, options, mixed, **asked)
        webui.generate(mixed, steps=STEPS)


def test_features_of_one_target_serve_no_other(webui, options, mixed):
    mixed = {**mixed, "alpha": 7.5}
    images = {}
    for _ in range(2):
        for name, asked in TARGETS.items():
            asked = dict(asked)
            if changed := asked.pop("options", None):
                before = {key: webui.call("/ditail-test/options").json[key] for key in changed}
                options(**changed)
            word = asked.pop("alwayson_scripts", "")
            hits, image = generate_beside(webui, mixed, word, **asked)
            assert (name, hits) == (name, hot_steps_of(name) if name in images else 0)
            assert images.setdefault(name, image) == image
            if changed:
                options(**before)
    assert len({images[name] for name in DIFFERENT}) == len(DIFFERENT)


def hot_steps_of(name: str) -> int:
    """Hypernetworks feed q and k differently, so only the steps without attention are kept."""
    return int(0.8 * STEPS) - (int(0.5 * STEPS) if "hyper" in TARGETS[name].get("prompt", "") else 0)


def generate_beside(webui, mixed, word, **asked):
    """With another extension's always-on script set to `word`."""
    before = caches(webui)["hits"]
    scripts = {"Ditail": {"args": [{"enabled": True, **mixed}]}, "Ditail test script": {"args": [word]}}
    made = webui.generate(alwayson_scripts=scripts, steps=STEPS, **asked)
    return caches(webui)["hits"] - before, made.image.tobytes()


def test_a_changed_lora_file_is_another_lora(webui, options, mixed):
    """The WebUI puts it into the weights only after an image without it; both of its images are then right."""
    mixed, path = {**mixed, "alpha": 7.75}, webui.data / "models" / "Lora" / "test-lora.safetensors"
    asked = {"prompt": LORA.format(1)}
    shutil.copy(path, path.with_suffix(".kept"))
    try:
        first = hot_steps(webui, mixed, **asked)[1]
        negate_lora(path)
        webui.call("/ditail-test/forget-loras", {})
        for plain_first in (False, True):
            if plain_first:
                webui.generate(steps=2)
            hits, image = hot_steps(webui, mixed, **asked)
            assert hits == 0
            assert image == without_features(webui, options, mixed, **asked)
            assert hot_steps(webui, mixed, **asked)[1] == image
        assert image != first
    finally:
        os.replace(path.with_suffix(".kept"), path)
        webui.call("/ditail-test/forget-loras", {})


def test_a_changed_checkpoint_file_is_another_model(webui, options, mixed):
    """The WebUI goes on with the old weights until it loads the file again."""
    mixed, folder = {**mixed, "alpha": 8.0}, webui.data / "models" / "Stable-diffusion"
    changing = folder / "changing.safetensors"
    shutil.copy(folder / "house-ink.yaml", folder / "changing.yaml")
    shutil.copy(folder / "house-ink.safetensors", changing)
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    asked = {"override_settings": {"sd_model_checkpoint": "changing"}}
    try:
        webui.generate(mixed, steps=STEPS, **asked)
        assert hot_steps(webui, mixed, **asked)[0] > 0
        shutil.copy(folder / "house-flat.safetensors", folder / "new")
        os.replace(folder / "new", changing)
        webui.generate(mixed, steps=STEPS, **asked)
        webui.generate(steps=1)
        hits, after = hot_steps(webui, mixed, **asked)
        assert hits == 0
        assert after == without_features(webui, options, mixed, **asked)
    finally:
        webui.generate(steps=1)
        changing.unlink()
        (folder / "changing.yaml").unlink()
        webui.call("/sdapi/v1/refresh-checkpoints", {})


def test_features_are_off_where_a_tag_is_not_known_to_be_safe(webui, mixed):
    before = caches(webui)["features"]
    for tag in ("<lora:test-lora:1:lbw=INS>", "<somebody:else>"):
        assert webui.generate({**mixed, "alpha": 8.25}, steps=STEPS, prompt=f"a fox {tag}").status == 200
    assert caches(webui)["features"] == before


def test_a_lowered_budget_frees_at_once(webui, options, mixed):
    webui.generate({**mixed, "alpha": 8.5}, steps=STEPS)
    assert all(count > 0 for count in (*caches(webui)["features"], *caches(webui)["latents"]))
    options(ditail_features_mb=0, ditail_cache_mb=0)
    assert caches(webui)["features"] == caches(webui)["latents"] == [0, 0]


def test_a_setting_that_a_job_overrides_holds_in_that_job(webui, mixed):
    webui.call("/ditail-test/restart", {})
    over = {"override_settings": {"ditail_features_mb": 0, "sd_model_checkpoint": "house-ink"}}
    webui.generate({**mixed, "alpha": 8.75}, steps=STEPS, override_settings_restore_afterwards=True, **over)
    assert caches(webui)["features"] == [0, 0]


def test_latents_on_disk_outlive_a_restart(webui, options, mixed):
    mixed, folder = {**mixed, "alpha": 9.0}, webui.data / "cache" / "ditail"
    options(ditail_disk=True, ditail_features_mb=0)
    cold = webui.generate(mixed, steps=STEPS).image.tobytes()
    file, = folder.iterdir()
    with safe_open(str(file), "pt") as entry:
        assert entry.metadata().items() >= {"key": file.stem, "alpha": "9", "prompt": "a fox on pink"}.items()
    webui.call("/ditail-test/restart", {})
    loads = webui.checkpoint_loads()
    assert webui.generate(mixed, steps=STEPS).image.tobytes() == cold
    assert webui.checkpoint_loads() == loads
    file.write_bytes(file.read_bytes()[:-100])
    webui.call("/ditail-test/restart", {})
    assert webui.generate(mixed, steps=STEPS).image.tobytes() == cold
    assert webui.checkpoint_loads() == loads + 1 + LOADS_TO_GO_BACK
    assert f"{file.name}: can't be read as source latents" in webui.log.read_text(errors="replace")


def test_settings_page_shows_the_sizes_and_empties_the_caches(webui, options, page, base64_content):  # noqa: F811
    options(ditail_disk=True)
    webui.generate({"image": base64_content, "alpha": 9.25}, steps=STEPS)
    page.click("#tabs > .tab-nav > button:text-is('Settings')")
    page.click("#settings > .tab-nav > button:text-is('Ditail')")
    kept = caches(webui)
    shown = f"Source latents in RAM: {kept['latents'][0]} ("
    page.wait_for_selector(f"#ditail_cache_sizes:has-text('{shown}')")
    assert f"features of steps: {kept['features'][0]} (" in page.inner_text("#ditail_cache_sizes")
    assert page.is_visible("#setting_ditail_features_mb") and page.is_visible("#setting_ditail_disk")

    show_tab(page, "txt2img")
    webui.generate({"image": base64_content, "alpha": 9.5}, steps=STEPS)
    page.click("#tabs > .tab-nav > button:text-is('Settings')")
    page.wait_for_selector(f"#ditail_cache_sizes:has-text('in RAM: {kept['latents'][0] + 1} (')")

    page.click("#ditail_empty_caches")
    page.wait_for_selector("#ditail_cache_sizes:has-text('in RAM: 0 (0.0 MB); on disk: 0 (0.0 MB); features')")
    assert {name: caches(webui)[name] for name in ("latents", "files", "features")} == {
        "latents": [0, 0], "files": [0, 0], "features": [0, 0]}
    page.click("#settings_submit")
    page.wait_for_selector("#settings_result:has-text('settings changed')")
