"""Kernels of formulas: what is common to them, their units, and what is refused."""

from __future__ import annotations

import pytest
import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.formula import MAX_REACH, make_kernel

TEXTS = ["gaussian:1.2", "disk:0.4", "disk:20", "box:6.3", "motion:7@0", "motion:9.5@-62"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_every_source_gives(text):
    taps = make_kernel(text)
    assert taps.dtype == torch.float64
    assert taps.ndim == 2
    assert all(size % 2 == 1 for size in taps.shape)
    assert abs(float(taps.sum()) - 1) < 1e-12
    assert float((taps - taps.flip((0, 1))).abs().max()) < 1e-12  # centered
    assert float(taps[0].abs().max()) > 1e-9  # no empty frame
    assert float(taps[:, 0].abs().max()) > 1e-9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "kernel source must be one of gaussian, disk, box, motion"),
        ("lens:3", "but is 'lens'"),
        ("disk", "must be written disk:RADIUS, for example disk:5.2, but is 'disk'."),
        ("disk:", "written disk:RADIUS"),
        (
            "disk:4*",
            "such as 'disk:4*motion:9@30', but one factor is missing in 'disk:4*'.",
        ),
        ("disk:4**motion:9@30", "one factor is missing"),
        ("* disk:4", "one factor is missing"),
        ("shift", "must be written shift:DOWN@RIGHT, for example shift:0.3@-0.2"),
        ("disk:1@2", "written disk:RADIUS"),
        ("disk:wide", "but is 'disk:wide'"),
        ("disk:nan", "for example"),
        ("motion:3", "written motion:LENGTH@ANGLE"),
        ("motion:3@1e999", "for example"),
        ("motion:3@" + "9" * 5000, "for example"),
        ("disk:0", "RADIUS must be positive"),
        ("gaussian:-1", "SIGMA must be positive"),
        ("box:-0.5", "SIZE must be positive"),
        ("motion:0@30", "LENGTH must be positive"),
        ("disk:1e9", f"at most {MAX_REACH} pixels"),
        ("gaussian:300", f"at most {MAX_REACH} pixels"),
        ("motion:5000@45", f"at most {MAX_REACH} pixels"),
        ("disk:2*shift:0.1", "is written shift:DOWN@RIGHT"),
        ("disk:2*shift:0.1@0@0", "same number of axes, but have 2 and 3"),
        ("disk:2*shift:a@b", "is written shift:DOWN@RIGHT"),
        ("disk:2*shift:0@99", "at most 64"),
        ("disk:1000*shift:0@60", "may extend at most"),
        ("disk:2*gausian:1.5", "but is 'gausian'; perhaps you mean gaussian."),
    ],
)
def test_what_is_none_is_refused_in_one_short_sentence(text, says):
    with pytest.raises(UsageError) as caught:
        make_kernel(text)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 200
