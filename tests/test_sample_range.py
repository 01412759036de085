"""Which value is white follows from the type in the file, and from the tensor only as far as that tells it."""

import pytest
import torch

from deconv_cli.sample_range import limits_of, white_of

COUNTS = torch.tensor([[[0, 70_000], [65_535, 3]]], dtype=torch.int32)
FULL = COUNTS.clamp_max(65_535)


@pytest.mark.parametrize(
    ("samples", "stored", "white", "limits"),
    [
        (FULL.clamp_max(255).byte(), None, 255, (0, 255)),
        (FULL.clamp_max(1).byte(), "bool", None, None),
        (FULL, "uint16", 65_535, (0, 65_535)),
        (FULL.clamp_max(9), "uint16", 65_535, (0, 65_535)),
        (FULL, "int32", None, (-(2**31), 2**31 - 1)),
        (FULL, None, 65_535, (0, 65_535)),
        (COUNTS, None, None, (-(2**31), 2**31 - 1)),
        (FULL - 1, None, None, (-(2**31), 2**31 - 1)),
        (FULL[:, :0], None, None, (-(2**31), 2**31 - 1)),
        (COUNTS.long(), "uint32", None, (0, 2**32 - 1)),
        (FULL.float(), None, None, None),
    ],
)
def test_white_and_limits(samples, stored, white, limits):
    assert white_of(samples, stored) == white
    assert limits_of(samples, stored) == limits
