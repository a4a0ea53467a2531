"""The balance slider and the presets that it passes through."""

import pytest

from ditail.content.balance import ANCHORS, KEYS, at_balance, balance_of, name_of, preset_values
from ditail.content.presets import PRESETS
from ditail.content.settings import BY_KEY, DitailSettings

PLACES = [i / 20 for i in range(21)]


@pytest.mark.parametrize("place", ANCHORS)
def test_the_anchors_are_the_presets(place):
    assert at_balance(place) == preset_values(PRESETS[ANCHORS[place]])
    assert name_of(at_balance(place), PRESETS) == ANCHORS[place]


@pytest.mark.parametrize("place", PLACES)
def test_every_position_gives_valid_settings_and_is_recognised_again(place):
    values = at_balance(place)
    DitailSettings(**values)
    assert at_balance(balance_of(values)) == values


def test_numbers_lie_between_their_neighbours():
    for key in KEYS:
        low, between, high = (at_balance(place)[key] for place in (0.0, 0.25, 0.5))
        if isinstance(BY_KEY[key].default, float):
            assert min(low, high) <= between <= max(low, high)
        else:
            assert between in (low, high)


def test_other_settings_have_no_position_on_the_slider():
    values = {**at_balance(0.5), "alpha": 9.5}
    assert balance_of(values) is None and name_of(values, PRESETS) is None


def test_positions_outside_are_clamped():
    assert at_balance(-1) == at_balance(0) and at_balance(2) == at_balance(1)
