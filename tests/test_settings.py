"""The settings table and the object built from it."""

import dataclasses

import pytest

from ditail import DitailError
from ditail.content.settings import BY_KEY, FIELDS, SAFE_REGION, DitailSettings, warnings_of


def test_the_object_has_the_tables_fields_and_defaults():
    assert [f.name for f in dataclasses.fields(DitailSettings)] == [f.key for f in FIELDS]
    assert dataclasses.asdict(DitailSettings()) == {f.key: f.default for f in FIELDS}


def test_every_field_has_words_for_the_ui_and_a_key_of_its_own():
    for field in FIELDS:
        assert field.label and field.help.endswith(".")
    keys = [f.infotext for f in FIELDS if f.infotext]
    assert len(set(keys)) == len(keys)
    assert all(k.startswith("Ditail ") for k in keys)


def test_values_come_back_in_their_own_type_and_are_frozen():
    settings = DitailSettings.from_dict({"enabled": True, "alpha": 5, "source_prompt": "a fox"})
    assert isinstance(settings.alpha, float) and settings.alpha == 5.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.alpha = 1.0


@pytest.mark.parametrize(("values", "key"), [
    ({"alpha": "abc"}, "alpha"), ({"alpha": float("nan")}, "alpha"), ({"alpha": float("inf")}, "alpha"),
    ({"alpha": 10**5000}, "alpha"), ({"alpha": -1}, "alpha"),
    ({"alpha": 11}, "alpha"), ({"alpha": True}, "alpha"), ({"alpha": None}, "alpha"),
    ({"beta": [1]}, "beta"), ({"conv_ratio": 1.01}, "conv_ratio"), ({"attn_ratio": -0.01}, "attn_ratio"),
    ({"enabled": 1}, "enabled"), ({"enabled": "true"}, "enabled"), ({"source": "photo"}, "source"),
    ({"resize_mode": "0"}, "resize_mode"), ({"start": 1}, "start"), ({"image": 3}, "image"), ({"mask": {}}, "mask"),
    ({"source_checkpoint": None}, "source_checkpoint"), ({"alhpa": 3}, "alhpa"), ({3: 3}, "3"), ([1], "args"),
    ({"sources": "x"}, "sources"), ({"collage": {}}, "collage"),
    ({"layers": "f4 b3"}, "layers"), ({"layers": 4}, "layers"), ({"hires": "on"}, "hires"),
    ({"show_source": None}, "show_source"),
])
def test_what_is_wrong_is_named(values, key):
    with pytest.raises(DitailError) as caught:
        DitailSettings.from_dict(values)
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")
    assert len(str(caught.value)) < 400


def test_the_defaults_are_in_the_safe_region():
    assert warnings_of(alpha=BY_KEY["alpha"].default, beta=BY_KEY["beta"].default, cfg_scale=7.0) == []
    assert warnings_of() == warnings_of(alpha=None, cfg_scale=None) == []


@pytest.mark.parametrize(("name", "key", "lowest", "highest"), SAFE_REGION)
def test_values_outside_the_safe_region_give_a_warning(name, key, lowest, highest):
    assert warnings_of(**{key: lowest}) == warnings_of(**{key: highest}) == []
    for value, side in ((lowest - 0.5, f"below {lowest:g}"), (highest + 0.5, f"above {highest:g}")):
        assert warnings_of(**{key: value}) == [f"{name} {value:g} is {side}, where burnt colours are more common."]
