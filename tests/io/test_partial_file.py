"""Of several processes that make room for one result at once, none takes it away from another."""

import numpy as np
import pytest
import tifffile
from region_cases import planned

from deconv_cli.errors import FileAccessError
from deconv_cli.io import partial_file
from deconv_cli.io.atomic import partial_path
from deconv_cli.io.partial_file import make_partial
from deconv_cli.io.regions import open_regions


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_the_first_of_two_that_make_room_wins(tmp_path, monkeypatch, suffix):
    samples = np.random.default_rng(2).random((64, 48)).astype("float32")
    tifffile.imwrite(tmp_path / "in.tif", samples, tile=(32, 16))
    target = planned(open_regions(tmp_path / "in.tif"), tmp_path / f"out{suffix}")
    link = partial_file.os.link

    def other_is_quicker(own, partial):
        monkeypatch.setattr(partial_file.os, "link", link)
        target.create()
        target.write((slice(0, 64), slice(0, 48)), samples)
        link(own, partial)

    monkeypatch.setattr(partial_file.os, "link", other_is_quicker)
    target.create()
    target.finish({})
    found = open_regions(target.path).read((slice(0, 64), slice(0, 48)))
    np.testing.assert_array_equal(found, samples)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_not_right_is_made_anew_and_what_fails_leaves_nothing(tmp_path):
    path = tmp_path / "a.bin"
    make_partial(path, 3, lambda new: [(0, 3)], lambda own: own.write_bytes(b"old") and None)
    make_partial(path, 3, lambda new: [], lambda own: own.write_bytes(b"new") and None)
    assert partial_path(path).read_bytes() == b"old"
    make_partial(path, 3, lambda new: [(0, 3)], lambda own: own.write_bytes(b"new") and None)
    assert partial_path(path).read_bytes() == b"new"

    def fail(own):
        own.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_partial(path, 3, lambda new: [(0, 3)], fail)
    assert list(tmp_path.iterdir()) == [partial_path(path)]
    with pytest.raises(FileAccessError, match="has room for"):
        make_partial(path, 2**70, lambda new: [(0, 3)], lambda own: own.write_bytes(b"old") and None)
    assert list(tmp_path.iterdir()) == []
