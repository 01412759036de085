"""The advice of a refusal is the nearest of a few settings that was tried and does."""

import pytest

from deconv_cli.blocks.fixed_choices import FixedChoices
from deconv_cli.blocks.less_influence import nearest

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


def test_without_choices_nothing_is_tried():
    assert nearest([], lambda _: pytest.fail("it was asked")) is None
