"""Numbers are written as people write them."""

import pytest

from deconv_cli.vocabulary import format_percent, nearest_name


@pytest.mark.parametrize(
    ("share", "n_digits", "written"),
    [
        (0.00421, 2, "0.42 %"),
        (0.994, 2, "99 %"),
        (0.9999, 2, "99 %"),
        (2.5, 2, "250 %"),
        (0.9996, 3, "99.9 %"),
        (0.1234, 3, "12.3 %"),
        (12.34, 3, "1234 %"),
    ],
)
def test_a_share_is_never_written_by_a_power_of_ten(share, n_digits, written):
    assert format_percent(share, n_digits) == written


def test_another_number_is_no_misspelling():
    assert nearest_name(("float32", "float64"), "float16") is None
    assert nearest_name(("float32", "float64"), "flaot32") == "float32"
    assert nearest_name(("disk",), "disk3") == "disk"
