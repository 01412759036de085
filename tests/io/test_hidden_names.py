"""Files in the making have hidden names, and nobody reads them."""

import numpy as np
import pytest

from deconv_cli.errors import MalformedInputError
from deconv_cli.io import read_image
from deconv_cli.io.atomic import partial_path, write_atomically
from deconv_cli.io.regions import open_regions


@pytest.mark.parametrize("name", ["out.tif", "a[1] b.ome.tif", "ü" * 120 + ".npy"])
def test_a_file_is_written_under_a_hidden_name_of_its_suffix(tmp_path, name):
    def make(temporary):
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == (tmp_path / name).suffix
        temporary.write_bytes(b"new")

    write_atomically(tmp_path / name, make, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("ending", ["", "-0123abcd"])
@pytest.mark.parametrize("read", [read_image, open_regions])
def test_a_result_in_the_making_is_not_read(tmp_path, ending, read):
    hidden = partial_path(tmp_path / "out.npy")
    np.save(tmp_path / "whole.npy", np.zeros((4, 4)))
    (tmp_path / "whole.npy").rename(hidden.with_name(hidden.name + ending))
    with pytest.raises(MalformedInputError, match="is a result in the making, of which parts are missing"):
        read(hidden.with_name(hidden.name + ending))
