"""What once broke: each test failed on the version before its mend."""

import json
import shutil

import pytest

from ditail.content.presets import DEFAULT_PRESET
from tests.webui.faulty import NOTO, VAE, Faulty, Kind, differences
from tests.webui.server import IS_FORGE
from tests.webui.webui_helpers import difference, encode

STEPS = 6
SMALL = {"width": 64, "height": 64}
LONG = "a fox on pink, " + ", ".join(["a fox"] * 40)
# Injected at every step, so that every source latent counts.
EVERY_STEP = {"conv_ratio": 1.0, "attn_ratio": 1.0}
FROM_NOTO = {"source": "generate", "source_checkpoint": NOTO, **EVERY_STEP}
MODEL = {"model", "loaded_models", "vae_file", "base_vae"}
# Functions that loading a source model calls, and loading the target back; Forge has the second half.
LOADING = ("load.read", "load.model", "load.weights", "load.state_dict", "load.callbacks", "load.to_cpu", "load.config",
           "hijack.on", "hijack.off", "vae.load", "vae.reload", "load.reload", "load.schedule",
           "load.split", "load.component", "memory.load", "memory.load_one", "memory.unload", "memory.empty_cache")
ERRORS = ("ValueError", "InterruptedException", "OutOfMemoryError", "OSError")


@pytest.fixture(scope="module")
def faulty(webui):
    webui.generate(steps=1)
    return Faulty(webui)


@pytest.fixture(autouse=True)
def _cold(faulty):
    faulty.post("empty-caches")


# Forge makes a new model of each checkpoint.
@pytest.fixture(params=["a model each"] if IS_FORGE else ["a model each", "one model object"])
def one_config(faulty, request):
    """Loading makes a new model, or puts other weights into the one that is there."""
    faulty.post("share-config", {"on": request.param == "one model object"})
    faulty.webui.generate(steps=1, override_settings={"sd_model_checkpoint": "house-flat"})
    faulty.webui.generate(steps=1)
    yield
    faulty.post("share-config", {"on": False})
    faulty.webui.generate(steps=1, override_settings={"sd_model_checkpoint": "house-flat"})
    faulty.webui.generate(steps=1)


def image(webui, *args, **kwargs) -> bytes:
    return webui.generate(*args, **{"steps": STEPS, **SMALL, **kwargs}).image.tobytes()


# 1. Sources that are alike.

TWICE = {
    "nothing of its own": [{}],
    "two alike": [{"source_checkpoint": "house-flat"}, {"source_checkpoint": "house-flat"}],
    "the same checkpoint by its name": [{"source_checkpoint": "house-noto.safetensors"}],
    "the same image": [{"image": "the content", "source_checkpoint": NOTO}],
    "the same in other steps": [{"source_checkpoint": NOTO, "steps": [0.5, 1]}],
}


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
@pytest.mark.parametrize("case", TWICE)
def test_identical_sources_are_mixed(webui, ditail, base64_content, case, tab):
    sources = [{k: base64_content if k == "image" else v for k, v in s.items()} for s in TWICE[case]]
    own = {"init_images": [base64_content], "denoising_strength": 0.9} if tab == "img2img" else {}
    once = [sources[0]] if case == "two alike" else []
    weighted = [{**source, "weight": 2} for source in once]
    settings = {"image": base64_content} if case == "nothing of its own" else ditail
    expected = webui.generate({**settings, "sources": weighted}, tab=tab, steps=STEPS, **own)
    made = webui.generate({**settings, "sources": sources}, tab=tab, steps=STEPS, **own)
    assert made.status == 200, made.json
    assert difference(made.image, expected.image) < 1


def test_the_same_checkpoint_by_its_hash_is_mixed(webui, ditail):
    info = next(i for i in webui.call("/sdapi/v1/sd-models").json if i["model_name"] == NOTO)
    expected = webui.generate(ditail, steps=STEPS)
    for name in (info["title"], info["hash"], info["sha256"]):
        if name:
            made = webui.generate({**ditail, "sources": [{"source_checkpoint": name}]}, steps=STEPS)
            assert difference(made.image, expected.image) < 1


def test_the_second_source_as_the_tab_has_it_is_mixed(webui, content):
    """Only "Second source" ticked, and a content image given."""
    script = next(s for s in webui.call("/sdapi/v1/script-info").json if s["name"] == "ditail" and not s["is_img2img"])
    names = [a["label"] for a in script["args"]]
    values = [a["value"] for a in script["args"]]
    values[0], values[names.index("Content image")] = True, encode(content)
    values[names.index("Second source")] = True
    expected = webui.generate({"image": encode(content), "preset": DEFAULT_PRESET}, steps=STEPS)
    made = webui.generate(steps=STEPS, alwayson_scripts={"Ditail": {"args": values}})
    assert made.status == 200, made.json
    assert difference(made.image, expected.image) < 1


def test_identical_generated_sources_are_mixed(webui):
    expected = webui.generate(FROM_NOTO, steps=STEPS)
    made = webui.generate({**FROM_NOTO, "sources": [{"source": "generate", "source_checkpoint": NOTO}]}, steps=STEPS)
    assert made.status == 200, made.json
    assert difference(made.image, expected.image) < 1


# 2. A matrix that ends early.

MATRIX = Kind(None, {"steps": STEPS, "script_name": "Ditail matrix",
                     "script_args": [{"checkpoints": [NOTO, "house-ink"], **EVERY_STEP}]})


@pytest.mark.parametrize("action", ["interrupt", "skip", "stop", "raise"])
@pytest.mark.parametrize("call", [2, STEPS + 2, 2 * STEPS])
def test_a_matrix_that_ends_early_spoils_no_later_image(faulty, action, call):
    generated = Kind(FROM_NOTO, {"steps": STEPS})
    matrix, alone = faulty.image(MATRIX), faulty.image(generated)
    faulty.post("empty-caches")
    with faulty.armed(point="unet.call", call=call, action=action) as seen:
        faulty.ask(MATRIX)
    assert seen["fired"] == 1
    assert faulty.image(generated) == alone
    assert faulty.image(MATRIX) == matrix


def test_a_matrix_that_fails_while_it_loads_leaves_the_chosen_model(faulty):
    """In Forge the cell's model was in place by then, under the former one's hash."""
    plain = faulty.image(Kind(None, {}))
    with faulty.armed(point="load.callbacks", error="OSError") as seen:
        assert faulty.ask(MATRIX).status == 500
    assert seen["fired"] == 1
    assert faulty.image(Kind(None, {})) == plain


@pytest.mark.parametrize("action", ["interrupt", "skip", "stop", "raise"])
def test_a_generated_source_that_ends_early_spoils_no_later_image(faulty, action):
    generated = Kind(FROM_NOTO, {"steps": STEPS})
    expected = faulty.image(generated)
    for call in (1, STEPS // 2, STEPS):
        faulty.post("empty-caches")
        with faulty.armed(point="unet.call", call=call, action=action) as seen:
            faulty.ask(generated)
        assert seen["fired"] == 1
        assert faulty.image(generated) == expected, call


# 3. The target's file is gone.

@pytest.fixture
def doomed(webui):
    """A target whose file is away while the test runs; back afterwards."""
    folder = webui.data / "models" / "Stable-diffusion"
    file, away = folder / "doomed.safetensors", folder / "doomed.away"
    shutil.copy(folder / "house-flat.yaml", folder / "doomed.yaml")
    shutil.copy(folder / "house-flat.safetensors", file)
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    webui.generate(steps=1, override_settings={"sd_model_checkpoint": "doomed"})
    file.rename(away)
    yield away
    away.rename(file)
    webui.generate(steps=1)
    file.unlink()
    (folder / "doomed.yaml").unlink()
    webui.call("/sdapi/v1/refresh-checkpoints", {})


def test_nothing_is_unloaded_that_cannot_be_loaded_again(webui, faulty, ditail, doomed):
    own = {"override_settings": {}, "steps": STEPS}
    plain = webui.generate(**own).image.tobytes()
    before, loads = faulty.fingerprint(), webui.checkpoint_loads()
    answer = webui.generate(ditail, **own)
    assert answer.status == 422 and "doomed" in answer.error, answer.json
    assert webui.checkpoint_loads() == loads
    assert {k: v for k, v in differences(before, faulty.fingerprint()).items() if k in MODEL} == {}
    assert webui.generate(**own).image.tobytes() == plain


# 4. The settings that other threads see.

@pytest.mark.parametrize("vae", [VAE, "None"])
def test_settings_saved_while_a_source_loads_are_the_users_own(faulty, ditail, vae):
    assert faulty.webui.call("/sdapi/v1/options", {}).status == 200  # which writes them all
    before = json.loads((faulty.webui.data / "config.json").read_text())
    saved = set()
    for point in ("load.reload", "load.read", "load.weights", "vae.load", "vae.reload", "ditail.fingerprint",
                  "load.model", "load.component"):
        faulty.post("empty-caches")
        with faulty.armed(point=point, action="save", lasting=True) as seen:
            assert faulty.webui.generate({**ditail, "source_vae": vae}, steps=2).status == 200
        saved |= {point} if seen["fired"] else set()
        after = json.loads((faulty.webui.data / "config.json").read_text())
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert not any("vae" in key for key in changed), (point, changed)
    assert len(saved) >= 4


def test_no_setting_changes_while_a_job_runs(faulty, ditail):
    faulty.webui.generate(ditail, steps=2)
    faulty.post("empty-caches")
    with faulty.armed(record=True) as seen:
        job = Kind({**ditail, "source_vae": VAE, "guidance_until": 0.0}, {"steps": 2})
        assert faulty.ask(job).status == 200
    # The WebUI notes the hash of whatever checkpoint it loads.
    assert seen["options_seen"] == [], seen["options_seen"]


def test_settings_saved_without_guidance_are_the_users_own(faulty, ditail):
    assert faulty.webui.call("/sdapi/v1/options", {}).status == 200
    before = json.loads((faulty.webui.data / "config.json").read_text())
    with faulty.armed(point="unet.call", action="save", lasting=True) as seen:
        assert faulty.webui.generate({**ditail, "guidance_until": 0.0}, steps=2).status == 200
    assert seen["fired"] > 1
    after = json.loads((faulty.webui.data / "config.json").read_text())
    assert "s_min_uncond_all" not in {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


# 6. Loading back fails.

def calls_of(faulty, kind: Kind) -> dict[str, int]:
    faulty.post("empty-caches")
    with faulty.armed() as seen:
        assert faulty.ask(kind).status == 200
    return seen["counts"]


@pytest.mark.parametrize("vae", ["", VAE], ids=["its own VAE", "another VAE"])
@pytest.mark.usefixtures("one_config")
def test_a_failed_load_back_comes_right(faulty, ditail, vae):
    """At the last calls of each function that loading calls, once and lastingly."""
    kind, plain = Kind({**ditail, "source_vae": vae}, {}), Kind(None, {})
    expected, mixed = faulty.image(plain), faulty.image(kind)
    before, counts, wrong = faulty.fingerprint(), calls_of(faulty, kind), []
    for i, point in enumerate(point for point in LOADING if counts.get(point)):
        fault = {"point": point, "call": max(1, counts[point] - i % 2), "error": ERRORS[i % len(ERRORS)],
                 "lasting": i % 3 == 0}
        faulty.post("empty-caches")
        with faulty.armed(**fault) as seen:
            faulty.ask(kind)
        image = faulty.image(plain)
        left = {k: v for k, v in differences(before, faulty.fingerprint()).items() if k in MODEL}
        if not seen["fired"] or image != expected or left or faulty.image(kind) != mixed:
            wrong.append((fault, seen["fired"], image == expected, left))
            faulty.post("repair", {"options": before["options"]})
    assert wrong == []


# 7. What a generated source depends on.

@pytest.mark.parametrize("changed", [
    {"pad_cond_uncond": True}, {"pad_cond_uncond_v0": True}, {"batch_cond_uncond": False},
])
def test_a_hit_equals_a_miss(webui, faulty, options, changed):
    asked = {"prompt": LONG, "negative_prompt": "blurry"}
    before = {key: webui.call("/ditail-test/options").json[key] for key in changed}
    first = image(webui, FROM_NOTO, **asked)
    options(**changed)
    warm = image(webui, FROM_NOTO, **asked)
    faulty.post("empty-caches")
    assert image(webui, FROM_NOTO, **asked) == warm
    options(**before)
    assert image(webui, FROM_NOTO, **asked) == first


@pytest.mark.parametrize("changed", [
    {"pad_cond_uncond": True}, {"pad_cond_uncond_v0": True}, {"batch_cond_uncond": False},
])
def test_a_hit_equals_a_miss_with_overrides(webui, faulty, changed):
    asked = {"prompt": LONG, "negative_prompt": "blurry"}
    over = {"override_settings": {**changed, "sd_model_checkpoint": "house-ink"},
            "override_settings_restore_afterwards": True}
    image(webui, FROM_NOTO, **asked)
    warm = image(webui, FROM_NOTO, **asked, **over)
    faulty.post("empty-caches")
    assert image(webui, FROM_NOTO, **asked, **over) == warm


@pytest.mark.parametrize("first", [{"batch_size": 2, "seed": 4}, {"batch_size": 2, "n_iter": 2, "seed": 3}])
def test_a_source_made_in_a_batch_serves_one_made_alone(webui, faulty, first):
    """And the other way round: whatever is in the cache, the bits are the same."""
    alone, together = {"seed": 5}, first
    expected = {}
    for name, asked in (("alone", alone), ("together", together)):
        faulty.post("empty-caches")
        expected[name] = [i.tobytes() for i in webui.generate(FROM_NOTO, steps=STEPS, **SMALL, **asked).images]
    for order in ((alone, together), (together, alone)):
        faulty.post("empty-caches")
        for asked in order:
            made = [i.tobytes() for i in webui.generate(FROM_NOTO, steps=STEPS, **SMALL, **asked).images]
            assert made == expected["alone" if asked is alone else "together"]


REFINER = {"refiner_checkpoint": "house-flat", "refiner_switch_at": 0.4}


def test_a_refiner_in_a_matrix_spoils_no_generated_source(webui, faulty):
    made = webui.generate(steps=STEPS, **SMALL, **REFINER, script_name="Ditail matrix",
                          script_args=[{"checkpoints": [NOTO, "house-ink"], **EVERY_STEP}])
    assert made.status == 200
    after_matrix = image(webui, FROM_NOTO)
    faulty.post("empty-caches")
    assert image(webui, FROM_NOTO) == after_matrix


@pytest.mark.usefixtures("one_config")
def test_a_refiner_reads_and_spoils_no_features_of_the_base(webui, faulty, ditail, options):
    """With one model object the refiner's weights are loaded into the U-Net that has the hooks."""
    def images(*order: dict) -> list:
        faulty.post("empty-caches")
        return [webui.generate({**ditail, **EVERY_STEP}, steps=STEPS, **asked).image for asked in order]

    options(ditail_features_mb=0)
    refined, base = images(REFINER, {})
    assert difference(refined, base) > 1
    options(ditail_features_mb=512)
    for order, expected in ((({}, REFINER), (base, refined)), ((REFINER, {}, REFINER), (refined, base, refined))):
        for got, wanted in zip(images(*order), expected, strict=True):
            assert difference(got, wanted) < 0.01


def test_hypertile_in_a_matrix_spoils_no_generated_source(webui, faulty):
    tiles = {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 32, "hypertile_max_depth_unet": 3,
             "sd_model_checkpoint": "house-ink"}
    faulty.post("empty-caches")
    made = webui.generate(steps=STEPS, **SMALL, script_name="Ditail matrix",
                          script_args=[{"checkpoints": [NOTO, "house-ink"], **EVERY_STEP}], override_settings=tiles,
                          override_settings_restore_afterwards=True)
    assert made.status == 200
    # Not compared with an image of before: once switched on, hypertile wraps the attention for good, so that Ditail's
    # shortcuts stand aside and the image differs by their rounding.
    after_matrix = image(webui, FROM_NOTO)
    faulty.post("empty-caches")
    assert image(webui, FROM_NOTO) == after_matrix
