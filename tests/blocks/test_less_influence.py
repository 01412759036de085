"""The advice of a refusal is the nearest of a few settings that was tried and does."""

import pytest

from deconv_cli.blocks.fixed_choices import FixedChoices
from deconv_cli.blocks.halo_depth import SlowDecay
from deconv_cli.blocks.less_influence import N_CONFIRMED, confirmed, nearest

TRIED = [FixedChoices(lams=(float(n),)) for n in range(10)]


@pytest.mark.parametrize("first", range(11))
def test_the_nearest_choice_that_does_is_found_in_few_trials(first):
    asked = []

    def agree(choices):
        asked.append(choices)
        return choices.lams[0] >= first

    found = nearest(TRIED, agree)
    assert found == (TRIED[first] if first < 10 else None)
    assert found is None or found in asked
    assert len(asked) <= 5


@pytest.mark.parametrize(("all_agree_from", "expected"), [(4, 4), (5, 5), (6, 6), (7, None)])
def test_what_a_piece_agrees_under_is_named_only_if_all_do(all_agree_from, expected):
    looked_at_closely = []

    def agree(choices, is_trial):
        if is_trial:
            return choices.lams[0] >= 4
        looked_at_closely.append(choices)
        return choices.lams[0] >= all_agree_from

    assert confirmed(TRIED, agree) == (None if expected is None else TRIED[expected])
    assert len(looked_at_closely) == min(all_agree_from - 3, N_CONFIRMED)


@pytest.mark.parametrize(
    ("left", "foreseen"),
    [
        ([170.0, 180.0], [False, True]),  # does not fall at all
        ([11.0, 2.2, 0.025], [False, False, False]),  # falls fast enough
        ([34.0, 15.0, 0.75], [False, False, False]),  # may fall faster yet
        ([18.0, 17.0, 16.0], [False, True, True]),
        ([1.0, 0.0], [False, False]),
    ],
)
def test_depths_are_given_up_where_the_decay_is_much_too_slow(left, foreseen):
    decay = SlowDecay(deepest=165, wanted=0.05)
    assert [decay.is_hopeless_at(36 * 2**n, value) for n, value in enumerate(left)] == foreseen


def test_far_from_the_deepest_nothing_is_given_up():
    decay = SlowDecay(deepest=2000, wanted=0.05)
    assert not any(decay.is_hopeless_at(depth, 170.0) for depth in (36, 72, 144, 288))


def test_without_choices_nothing_is_tried():
    assert nearest([], lambda _: pytest.fail("it was asked")) is None
