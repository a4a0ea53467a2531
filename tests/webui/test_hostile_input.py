"""Input that no tab sends: taken, or refused with 422 and a short sentence that names the setting; never a 500."""

import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SHORT = 450  # a sentence of Ditail, and the entry of infotext that it is about
HOUSE = ["house-ink", "house-noto"]


def assert_refused(answer, key: str) -> None:
    assert answer.status == 422, answer.json
    assert answer.error.startswith(key) and len(answer.error) <= SHORT and "images" not in answer.json


def matrix(webui, *args, **overrides):
    return webui.generate(script_name="Ditail matrix", script_args=list(args), steps=2, **overrides)


@pytest.mark.parametrize(("args", "key"), [
    ([5], "script_args"), (["x"], "script_args"), ([None], "script_args"), ([], "script_args"),
    ([HOUSE], "script_args"), ([HOUSE, "", False, 0, 0], "script_args"), ([HOUSE, "", False, 0] * 10, "script_args"),
    ([5, "", False, 0], "checkpoints"), (["x", "", False, 0], "checkpoints"), ([None, None, None, 0], "checkpoints"),
    ([[5], "", False, 0], "checkpoints"), ([{}, "", False, 0], "checkpoints"), ([HOUSE, 5, False, 0], "further"),
    ([HOUSE, ["house-flat"], False, 0], "further"), ([HOUSE, "", "yes", 0], "one_source"),
    ([HOUSE, "", False, "abc"], "margin"), ([HOUSE, "", False, None], "margin"),
    ([HOUSE, "", False, float("nan")], "margin"), ([HOUSE, "", False, 1e9], "margin"),
    ([HOUSE, "", False, -1], "margin"), ([HOUSE, "", False, 10**400], "margin"), ([HOUSE, "", False, True], "margin"),
    ([["\ud800", "house-ink"], "", False, 0], "checkpoints"),
    ([["x" * 10**6, "house-ink"], "", False, 0], "checkpoints"),
    ([HOUSE, "[" * 10**5, False, 0], "checkpoints"), ([[str(i) for i in range(10**5)], "", False, 0], "checkpoints"),
    ([{"checkpoints": ["house-ink", "house-ink + <lora:"]}], "checkpoints"),
    ([{"checkpoints": ["house-ink", "house-ink + <lora:test-lora"]}], "checkpoints"),
    ([{"checkpoints": ["house-ink", "house-ink + <lora:test-lora:1> <"]}], "checkpoints"),
    ([{"checkpoints": ["house-ink", "house-ink +<>"]}], "checkpoints"),
    ([{"checkpoints": ["house-ink", "\ud800"]}], "checkpoints"),
    ([{"checkpoints": ["x" * 10**6, "house-ink"]}], "checkpoints"),
    ([{"checkpoints": None}], "checkpoints"), ([{"checkpoints": HOUSE, "one_source": None}], "one_source"),
])
def test_arguments_of_the_matrix(webui, args, key):
    assert_refused(matrix(webui, *args), key)


def test_arguments_of_the_matrix_by_position(webui):
    """What the tab sends still works, and from the API, too; words after a tag are the prompt's."""
    made = matrix(webui, ["house-ink"], "house-ink + <lora:test-lora:1> in ink", None, 2.0)
    assert made.status == 200 and len(made.images) == 1 + 4


@pytest.mark.parametrize(("args", "key"), [
    (["/path"], "script_args"), ([], "script_args"), ([None, "", "none", 0], "script_args"), ([None], "script_args"),
    ([None, 5, "none"], "folder"), ([None, ["/path"], "none"], "folder"), ([None, None, "none"], "folder"),
    ([["a.png"], "", "none"], "files"), ([5, "", "none"], "files"), (["a.png", "", "none"], "files"),
    ([[{"name": "a.png"}], "", "none"], "files"), ([None, "/tmp", "some"], "prompts"),
    ([None, "/tmp", None], "prompts"), ([None, "/tmp", ["none"]], "prompts"),
    ([None, "/none-such", "none"], "folder"), ([None, "x" * 10**5, "none"], "folder"), ([None, "\0", "none"], "folder"),
    ([None, "\ud800", "none"], "folder"),
    ([{"folder": "/none-such"}], "folder"), ([{"folder": 5}], "folder"), ([{}], "folder"),
    ([{"folder": "/tmp", "prompts": "some"}], "prompts"), ([{"folder": "/tmp", "prompts": None}], "prompts"),
    ([{"folder": "/tmp", "alpha": 2}], "script_args"), ([{"files": ["/etc/passwd"]}], "script_args"),
])
def test_arguments_of_the_folder(webui, args, key):
    assert_refused(webui.generate(script_name="Ditail folder", script_args=args, steps=2), key)


def infotext_of(**entries) -> str:
    """Infotext as the WebUI writes it: a text in quotation marks where it needs them."""
    entries = {"Steps": 1, "Sampler": "DDIM", "CFG scale": 5, "Seed": 1, "Size": "128x128", **entries}
    return "a fox on pink\n" + ", ".join(f"{k}: {json.dumps(v) if set(str(v)) & set(',:') else v}"
                                          for k, v in entries.items())


def paste(webui, entries: dict, ditail=None):
    return webui.generate(ditail, infotext=infotext_of(**entries), steps=1)


@pytest.mark.parametrize(("entries", "key"), [
    ({"Ditail alpha": "abc"}, "alpha"), ({"Ditail alpha": "nan"}, "alpha"), ({"Ditail alpha": "inf"}, "alpha"),
    ({"Ditail alpha": "-1"}, "alpha"), ({"Ditail beta": "1e9"}, "beta"), ({"Ditail feature ratio": "2"}, "conv_ratio"),
    ({"Ditail start": "middle"}, "start"), ({"Ditail hires": "perhaps"}, "hires"), ({"Ditail layers": "x9"}, "layers"),
    ({"Ditail source checkpoint": "[" * 10**5}, "source_checkpoint"),
    ({"Ditail source checkpoint": "\ud800"}, "source_checkpoint"),
    ({"Ditail sources": "[" * 3000 + "]" * 3000}, "sources"), ({"Ditail sources": "abc"}, "sources"),
    ({"Ditail sources": "5"}, "sources"), ({"Ditail sources": "[5]"}, "sources"),
    ({"Ditail sources": '[{"weight": "x"}]'}, "sources[0].weight"),
    ({"Ditail sources": '[{"weight": NaN}]'}, "sources[0].weight"),
    ({"Ditail sources": '[{"steps": "x"}]'}, "sources[0].steps"),
    ({"Ditail sources": '[{"source": 5}]'}, "sources[0].source"),
    ({"Ditail sources": "[" + "{}, " * 9 + "{}]"}, "sources"),
])
def test_infotext_of_a_request(webui, entries, key):
    answer = paste(webui, entries)
    assert_refused(answer, key)
    assert f'(infotext "{next(iter(entries))}")' in answer.error


@pytest.mark.parametrize(("changed", "key"), [
    ({"source_checkpoint": "\ud800"}, "source_checkpoint"), ({"source_checkpoint": "x" * 10**6}, "source_checkpoint"),
    ({"source_checkpoint": "[" * 10**6}, "source_checkpoint"), ({"source_vae": "\udfff"}, "source_vae"),
    ({"source_vae": "v" * 10**6}, "source_vae"), ({"source_prompt": "half a \ud83d"}, "source_prompt"),
    ({"\ud800": 1}, "\\ud800"), ({"x" * 10**6: 1}, "xxx"), ({"sources": [{"source_checkpoint": "\ud800"}]}, "sources"),
    ({"sources": [{"y" * 10**6: 1}]}, "sources"), ({"layers": "f4 \ud800"}, "layers"), ({"image": "\ud800"}, "image"),
    ({"alpha": 10**4000}, "alpha"), ({"source": "x" * 10**6}, "source"), ({"alpha": "a\nb\u2028c\x1b[31m"}, "alpha"),
])
def test_settings_of_a_request(webui, ditail, changed, key):
    answer = webui.generate({**ditail, **changed}, steps=1)
    assert_refused(answer, key)
    assert answer.error.isprintable()


def test_an_empty_text_is_no_image(webui, ditail, base64_content):
    """As null: clients that fill in every key send it."""
    given, left_out = (webui.generate({**ditail, **mask}, steps=2) for mask in ({"mask": ""}, {}))
    assert given.image.tobytes() == left_out.image.tobytes()
    answer = webui.generate({**ditail, "image": ""}, steps=2)
    assert answer.status == 422 and answer.error.startswith("image: ")
    asked = {"init_images": [base64_content], "steps": 2}
    given, left_out = (webui.generate({"source_checkpoint": "house-noto", **image}, "img2img", **asked)
                       for image in ({"image": ""}, {}))
    assert given.image.tobytes() == left_out.image.tobytes()


FEW = settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True,
               suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TEXTS = st.text(st.characters(codec=None), max_size=30)
VALUES = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)), max_leaves=5)
KEYS = ("enabled", "source", "image", "resize_mode", "source_checkpoint", "source_vae", "source_prompt", "alpha",
        "beta", "conv_ratio", "attn_ratio", "start", "layers", "hires", "show_source", "sources", "collage", "mask")


@FEW
@given(values=st.dictionaries(st.one_of(st.sampled_from(KEYS), TEXTS), VALUES, min_size=1, max_size=3))
def test_any_settings(webui, ditail, values):
    answer = webui.generate({**ditail, **values}, steps=2)
    assert answer.status in (200, 422) and len(answer.error) <= SHORT, answer.json


@FEW
@given(args=st.lists(VALUES, max_size=6))
def test_any_arguments_of_the_matrix(webui, args):
    answer = matrix(webui, *args)
    assert answer.status == 422 and len(answer.error) <= SHORT, answer.json


@FEW
@given(args=st.lists(VALUES, max_size=4))
def test_any_arguments_of_the_folder(webui, args):
    answer = webui.generate(script_name="Ditail folder", script_args=args, steps=2)
    assert answer.status == 422 and len(answer.error) <= SHORT, answer.json


@FEW
@given(key=st.sampled_from(["alpha", "beta", "start", "layers", "hires", "sources", "source checkpoint", "source VAE"]),
       value=st.one_of(st.text(min_size=1, max_size=30), VALUES.map(json.dumps)))
def test_any_infotext(webui, key, value):
    answer = paste(webui, {f"Ditail {key}": value})
    assert answer.status in (200, 422) and len(answer.error) <= SHORT, answer.json


@settings(FEW, max_examples=15)
@given(prompt=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30))
def test_a_source_prompt_comes_back_through_infotext(webui, ditail, prompt):
    assert_comes_back(webui, ditail, prompt)


@pytest.mark.parametrize("prompt", ["Ditail source prompt", ' "quoted" ', '"', "512x768", "a, b: c", "tab\tend ", "\\"])
def test_an_odd_source_prompt_comes_back_through_infotext(webui, ditail, prompt):
    assert_comes_back(webui, ditail, prompt)


def assert_comes_back(webui, ditail, prompt: str) -> None:
    """The WebUI reads out of the image what was written into it."""
    made = webui.generate({**ditail, "source_prompt": prompt, "alpha": 2.123456789}, steps=1)
    parsed = webui.call("/sdapi/v1/png-info", {"image": "data:image/png;base64," + made.json["images"][0]})
    found = parsed.json["parameters"]
    size = f"{found.get('Ditail source prompt-1')}x{found.get('Ditail source prompt-2')}"
    assert found.get("Ditail source prompt", size) == prompt
    assert float(found["Ditail alpha"]) == 2.123456789


def test_a_plain_image_is_made_after_all_this(webui):
    assert webui.generate(steps=1).status == 200
