"""Motion along a path: how it is read, and what is known of it; its transform is in `test_band_limited.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.formula import make_kernel

CURVE = [(0, 0.0, 0.0), (1, 2.3, 1.1), (3, 5.0, 0.4), (4, 5.0, 0.4), (5, 7.7, -3.9)]
"""Time, x and y."""


def write(folder, rows, names="t,x,y"):
    path = folder / "path.csv"
    path.write_text("\n".join([names, *(",".join(map(str, row)) for row in rows)]))
    return path


def test_a_straight_path_is_a_motion(tmp_path):
    half = 4.5 * np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)])
    path = write(tmp_path, [(-half[0], half[1]), (half[0], -half[1])], names="x,y")
    torch.testing.assert_close(make_kernel(f"path:{path}"), make_kernel("motion:9@30"), rtol=0, atol=1e-5)


def test_equal_times_without_names(tmp_path):
    path = write(tmp_path, [(3, 0), (3, 4)], names="0,0")
    rows = make_kernel(f"path:{path}").flip((0, 1)).sum(1)
    # Half of the time along the columns, half along the rows, whatever their lengths.
    down = torch.arange(len(rows)).double() - len(rows) // 2
    assert float(rows @ down) == pytest.approx(0, abs=1e-3)
    assert float(rows @ down.square()) == pytest.approx(0.5 * 1 + 0.5 * (16 / 12 + 1), rel=0.02)


def test_a_path_along_the_edges_of_pixels(tmp_path):
    path = write(tmp_path, [(0, 0), (4, 0), (4, 3), (0, 3)], names="x,y")
    assert float(make_kernel(f"path:{path}").sum()) == pytest.approx(1)


def test_a_path_is_shifted_and_follows_another_blur(tmp_path):
    path = write(tmp_path, CURVE)
    taps = make_kernel(f"gaussian:1*path:{path}*shift:0.2@0")
    down = torch.arange(taps.shape[0]) - taps.shape[0] // 2
    assert float((taps.flip((0, 1)).sum(1) * down).sum()) == pytest.approx(0.2, abs=5e-3)


@pytest.mark.parametrize(
    ("rows", "names", "says"),
    [
        ([(0, 0)], "x,y", "2 to 100000 points"),
        ([(0, "a"), (1, 1)], "x,y", "with numbers in the columns"),
        ([(0, 0), (1, 1)], "u,v", "columns x, y"),
        ([(0, 0, 0), (0, 1, 1)], "t,x,y", "must increase"),
        ([(0, 0), (5000, 1)], "x,y", "extends at most 1024"),
    ],
)
def test_what_is_no_path_is_refused(tmp_path, rows, names, says):
    with pytest.raises(UsageError, match=says):
        make_kernel(f"path:{write(tmp_path, rows, names)}")


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="a readable CSV file"):
        make_kernel(f"path:{tmp_path / 'none.csv'}")
