"""Sources by image of a batch, generated sources, and what a sweep makes and loads."""

import re

import pytest
from PIL import Image

from ditail.content.settings import FIELDS
from tests.webui.server import LOADS_TO_GO_BACK
from tests.webui.webui_helpers import SIDE, difference, encode, likeness


def test_each_init_image_of_a_batch_is_its_own_content(webui, ditail, content):
    images = [encode(content), encode(content.rotate(180))]
    asked = {"tab": "img2img", "denoising_strength": 0.9}
    settings = {**ditail, "image": None}
    together = webui.generate(settings, init_images=images, batch_size=2, n_iter=2, seed=5, **asked)
    assert len({text.partition("Ditail image hash: ")[2][:10] for text in together.infotexts}) == 2
    for i, image in enumerate(together.images):
        alone = webui.generate(settings, init_images=[images[i % 2]], seed=5 + i, **asked)
        assert difference(image, alone.image) < 1


@pytest.mark.parametrize("own", [False, True])
def test_fewer_init_images_than_the_batch_size(webui, ditail, content, own):
    """img2img lowers the batch size to their number, after the script was told of the job."""
    images = [encode(content.rotate(90 * i)) for i in range(3)]
    asked = {"tab": "img2img", "denoising_strength": 0.9}
    settings = {**ditail, "image": ditail["image"] if own else None}
    together = webui.generate(settings, init_images=images, batch_size=4, n_iter=2, seed=5, **asked)
    assert together.status == 200, together.json
    assert len(together.images) == 6
    for i, image in enumerate(together.images):
        alone = webui.generate(settings, init_images=[images[i % 3]], seed=5 + i, **asked)
        assert difference(image, alone.image) < 1


def test_generated_sources_of_fewer_init_images_than_the_batch_size(webui, content):
    settings = {"source": "generate", "source_checkpoint": "house-noto"}
    images = [encode(content.rotate(90 * i)) for i in range(3)]
    asked = {"tab": "img2img", "denoising_strength": 0.9, "init_images": images, "n_iter": 2, "seed": 5}
    lowered, exact = (webui.generate(settings, batch_size=size, **asked) for size in (4, 3))
    assert [image.tobytes() for image in lowered.images] == [image.tobytes() for image in exact.images]


# In this order: the WebUI does not set back an overridden option that its config.json lacks.
@pytest.mark.parametrize("options", [{"batch_cond_uncond": False}, {"batch_cond_uncond": True}])
def test_rows_keep_their_source_however_they_are_batched(webui, ditail, content, options):
    """Composed prompts and prompts of unequal length come in other rows and other calls."""
    images = [encode(content), encode(content.rotate(180))]
    asked = {"tab": "img2img", "denoising_strength": 0.9, "override_settings": options,
             "prompt": "a fox AND pink :0.5, " + ", ".join(["a fox"] * 30)}
    settings = {**ditail, "image": None}
    together = webui.generate(settings, init_images=images, batch_size=2, seed=5, **asked)
    for i, image in enumerate(together.images):
        alone = webui.generate(settings, init_images=[images[i]], seed=5 + i, **asked)
        assert difference(image, alone.image) < 1


def test_generated_source(webui):
    """The same model's own trajectory leads near the plain image of its seed; another model's is loaded for once."""
    plain, other_seed = webui.generate(steps=20), webui.generate(steps=20, seed=2)
    own = webui.generate({"source": "generate"}, steps=20)
    assert likeness(own.image, plain.image) > likeness(own.image, other_seed.image) + 0.1
    before = webui.checkpoint_loads()
    cold = webui.generate({"source": "generate", "source_checkpoint": "house-flat"}, sampler_name="Euler")
    warm = webui.generate({"source": "generate", "source_checkpoint": "house-flat"}, sampler_name="Euler")
    assert webui.checkpoint_loads() - before == 1 + LOADS_TO_GO_BACK
    assert cold.image.tobytes() == warm.image.tobytes()


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a", "DPM++ 2M SDE"])
def test_every_image_has_its_own_generated_source(webui, sampler):
    settings = {"source": "generate", "source_checkpoint": "house-noto"}
    asked = {"sampler_name": sampler, "steps": 12}
    batch = webui.generate(settings, batch_size=2, n_iter=2, seed=5, **asked)
    assert difference(batch.images[0], batch.images[3]) > 5
    for i, image in enumerate(batch.images):
        assert difference(image, webui.generate(settings, seed=5 + i, **asked).image) < 1


def test_the_shown_source_is_the_source_models_own_image(webui):
    asked = {"sampler_name": "Euler a", "batch_size": 2, "steps": 10}
    made = webui.generate({"source": "generate", "source_checkpoint": "house-noto", "show_source": True}, **asked)
    own = webui.generate(override_settings={"sd_model_checkpoint": "house-noto"}, **asked)
    assert len(made.images) == len(made.infotexts) == 4
    for source, image in zip(made.images[2:], own.images, strict=True):
        assert difference(source, image) < 0.6
    assert "Model: house-noto" in made.infotexts[2] and "Seed: 1," in made.infotexts[2]
    assert "Seed: 2," in made.infotexts[3] and "Ditail" not in made.infotexts[3]


def test_the_shown_content_image(webui, ditail, content):
    made = webui.generate({**ditail, "show_source": True})
    assert difference(made.images[1], content) == 0
    parameters = webui.call("/sdapi/v1/png-info", {"image": made.json["images"][1]}).json["parameters"]
    # What the WebUI's Save reads, the job's own settings, and no model that a paste would choose.
    assert [parameters[key] for key in ("Prompt", "Seed", "Steps", "Size-1")] == ["a fox on pink", "1", "8", str(SIDE)]
    assert parameters["Ditail image hash"] in made.infotexts[0] and parameters["Ditail alpha"] == "3"
    assert "Model" not in parameters and parameters["Ditail shows"] == "content image"


def test_a_sweep_inverts_and_loads_only_what_is_distinct(webui, ditail):
    """Five alphas by three targets: five inversions; loads of the source, and of each target."""
    webui.generate()
    before = webui.loads_and_inversions()
    targets = ["house-ink.safetensors", "house-noto.safetensors", "house-flat.safetensors"]
    made = webui.plot({**ditail, "source_checkpoint": "house-flat", "beta": 0.35},
                      ("[Ditail] Alpha", "0.5, 1, 2, 3, 5"), ("Checkpoint name", targets))
    assert len(made.images) == 1 + 15
    loads, inversions = (now - then for now, then in zip(webui.loads_and_inversions(), before, strict=True))
    assert inversions == 5
    # Flat as the source, back to ink, noto, flat as a target; at the plot's end the WebUI goes back to ink.
    assert loads <= 5
    for text in made.infotexts[1:]:
        assert "Ditail alpha: " in text


def test_every_setting_of_infotext_is_an_axis(webui, ditail):
    plot = next(s for s in webui.call("/sdapi/v1/script-info").json if s["name"] == "x/y/z plot")
    labels = {label for label in plot["args"][0]["choices"] if label.startswith("[Ditail] ")}
    assert labels == {f"[Ditail] {field.label}" for field in FIELDS if field.infotext} | {"[Ditail] Source prompt S/R"}
    swept = webui.plot(ditail, ("[Ditail] Inject into", ["both", "cond"]), ("[Ditail] Inversion steps", "0.25, 1"))
    assert ["Ditail inject: cond" in text for text in swept.infotexts[1:]] == [False, True, False, True]
    assert ["Ditail inversion steps: 0.25" in text for text in swept.infotexts[1:]] == [True, True, False, False]


def test_axes(webui, ditail):
    made = webui.plot(ditail, ("[Ditail] Attention ratio", "0, 1"), ("[Ditail] Start", ["source", "noise"]))
    assert ["Ditail attention ratio: 0," in t for t in made.infotexts[1:]] == [True, False, True, False]
    assert ["Ditail start: noise" in t for t in made.infotexts[1:]] == [False, False, True, True]
    assert difference(*made.images[1:3]) > 0.5
    made = webui.plot(ditail, ("[Ditail] Source prompt S/R", "fox, cat"), ("CFG Scale", "2, 7"))
    assert ["Ditail source prompt: a cat on pink" in t for t in made.infotexts[1:]] == [False, True, False, True]
    made = webui.plot(ditail, ("[Ditail] Source checkpoint", ["house-noto.safetensors", "house-flat.safetensors"]))
    assert "house-flat" in made.infotexts[2] and difference(*made.images[1:3]) > 0.5


@pytest.mark.parametrize(("label", "values"), [
    ("[Ditail] Alpha", "1, 11"), ("[Ditail] Start", ["middle"]), ("[Ditail] Source checkpoint", ["none-such"]),
    ("[Ditail] Source VAE", ["none-such"]), ("[Ditail] In the hires pass", ["maybe"]),
])
def test_axis_values_are_checked_before_anything_runs(webui, ditail, label, values):
    answer = webui.plot(ditail, (label, values))
    assert answer.status == 422 and answer.error


class TestMixing:
    def test_a_second_source_of_no_weight_changes_nothing(self, webui, ditail):
        alone = webui.generate(ditail)
        mixed = webui.generate({**ditail, "sources": [{"source_checkpoint": "house-flat", "weight": 0}]})
        assert difference(alone.image, mixed.image) < 0.6

    def test_two_models_of_one_image(self, webui, ditail):
        webui.generate()
        before = webui.loads_and_inversions()
        settings = {**ditail, "alpha": 2.13, "sources": [{"source_checkpoint": "house-flat"}]}
        mixed = webui.generate(settings)
        loads, inversions = (now - then for now, then in zip(webui.loads_and_inversions(), before, strict=True))
        assert (loads, inversions) == (2 + LOADS_TO_GO_BACK, 2)  # noto, flat, and back to ink
        noto = webui.generate({**ditail, "alpha": 2.13})
        flat = webui.generate({**ditail, "alpha": 2.13, "source_checkpoint": "house-flat"})
        assert webui.loads_and_inversions()[1] - before[1] == 2  # both are known by now
        assert difference(mixed.image, noto.image) > 0.2 and difference(mixed.image, flat.image) > 0.2
        assert "house-flat" in mixed.infotext

    def test_two_images_side_by_side(self, webui, ditail, other_content):
        right = Image.new("L", (SIDE, SIDE), 0)
        right.paste(255, (SIDE // 2, 0, SIDE, SIDE))
        settings = {**ditail, "alpha": 1.0, "conv_ratio": 1.0, "attn_ratio": 1.0}
        second = {"image": encode(other_content), "source_checkpoint": "house-noto", "mask": encode(right)}
        mixed = webui.generate({**settings, "sources": [second]}, steps=20)
        first_alone, other_alone = webui.generate(settings, steps=20), webui.generate(
            {**settings, "image": encode(other_content)}, steps=20)
        left, right = (0, 0, 48, SIDE), (80, 0, SIDE, SIDE)
        for box, near, far in ((left, first_alone, other_alone), (right, other_alone, first_alone)):
            assert difference(mixed.image.crop(box), near.image.crop(box)) < difference(
                mixed.image.crop(box), far.image.crop(box))

    def test_by_range_of_steps_and_generated(self, webui, ditail):
        alone = webui.generate(ditail)
        early = webui.generate({**ditail, "sources": [{"source": "generate", "steps": [0, 0.3]}]}, batch_size=2)
        late = webui.generate({**ditail, "sources": [{"source": "generate", "steps": [0.3, 1]}]})
        assert difference(early.image, alone.image) > 0.5 and difference(late.image, alone.image) > 0.2

    def test_a_mask_at_a_size_that_is_no_multiple_of_8(self, webui, ditail, other_content):
        """As img2img's "Resize by" gives them."""
        right = Image.new("L", (132, 132), 0)
        right.paste(255, (66, 0, 132, 132))
        asked = {"tab": "img2img", "init_images": [ditail["image"]], "denoising_strength": 0.9, "width": 132,
                 "height": 132}
        second = {"image": encode(other_content), "mask": encode(right)}
        mixed = webui.generate({**ditail, "mask": encode(right), "sources": [second]}, **asked)
        assert mixed.status == 200, mixed.json
        alone = webui.generate({**ditail, "mask": encode(right)}, **asked)
        halves = [(0, 0, 48, 128), (80, 0, 128, 128)]
        left, right = (difference(mixed.image.crop(box), alone.image.crop(box)) for box in halves)
        assert right > left

    @pytest.mark.parametrize(("sources", "what"), [
        ("x", "sources: "), ([1], "sources[0]: "), ([{"weight": 11}], "sources[0].weight"),
        ([{}, {"steps": [0.5, 0.5]}], "sources[1].steps"), ([{"image": "x"}], "sources[0].image"),
        ([{"source_checkpoint": "none-such"}], "sources[0].source_checkpoint"), ([{"colour": 1}], "sources[0]: "),
        ([{"source_checkpoint": "other-architecture"}], "source_checkpoint"), ([{}] * 9, "sources: "),
    ])
    def test_bad_sources(self, webui, ditail, sources, what):
        answer = webui.generate({**ditail, "sources": sources})
        assert answer.status == 422 and answer.error.startswith(what)


class TestCollage:
    def test_pieces_by_box_and_by_mask(self, webui, ditail, content):
        right = Image.new("L", (SIDE, SIDE), 0)
        right.paste(255, (SIDE // 2, 0, SIDE, SIDE))
        pieces = [{"image": encode(content), "box": [0, 0, 0.5, 1], "resize_mode": "stretch"},
                  {"image": encode(content.rotate(180)), "mask": encode(right)}]
        settings = {**ditail, "image": None, "collage": pieces, "show_source": True}
        made = webui.generate(settings, steps=12)
        laid_out = content.rotate(180)
        laid_out.paste(content.resize((SIDE // 2, SIDE), Image.Resampling.LANCZOS), (0, 0))
        assert difference(made.images[1], laid_out) < 1
        assert re.search(r"Ditail collage: 0 0 0\.5 1 image=\w+; 0 0 1 1 image=\w+ mask=\w+", made.infotext)
        whole = webui.generate({**ditail, "image": encode(laid_out)}, steps=12)
        assert difference(made.images[0], whole.image) < 0.6

    def test_over_the_init_image_and_only_where_pieces_lie(self, webui, ditail, content, base64_content):
        piece = {"image": encode(Image.new("RGB", (9, 9), "blue")), "box": [0.5, 0, 0.5, 1]}
        settings = {**ditail, "image": None, "collage": [piece], "show_source": True}
        over = webui.generate(settings, tab="img2img", init_images=[base64_content])
        assert difference(over.images[1].crop((0, 0, 64, SIDE)), content.crop((0, 0, 64, SIDE))) == 0
        plain = webui.generate({**settings, "start": "noise", "conv_ratio": 0, "attn_ratio": 0})
        alone = webui.generate({**settings, "start": "noise"})
        changed = [difference(plain.image.crop(box), alone.image.crop(box))
                   for box in ((0, 0, 48, SIDE), (80, 0, SIDE, SIDE))]
        assert changed[0] < changed[1]

    @pytest.mark.parametrize(("pieces", "what"), [
        ("x", "collage: "), ([{}], "collage[0].image"), ([{"image": "none"}], "collage[0].image"), ([3], "collage[0]"),
        ([{"image": "x", "box": [0, 0, 2, 1]}], "collage[0]."), ([{}] * 17, "collage: "),
    ])
    def test_bad_pieces(self, webui, ditail, pieces, what):
        answer = webui.generate({**ditail, "collage": pieces})
        assert answer.status == 422 and answer.error.startswith(what)

    def test_not_of_a_generated_source(self, webui, base64_content):
        answer = webui.generate({"source": "generate", "collage": [{"image": base64_content, "box": [0, 0, 1, 1]}]})
        assert answer.status == 422 and answer.error.startswith("collage: ")
