"""Tensors in .safetensors files are read a part at a time, and never written so."""

import numpy as np
import pytest
import torch
from region_cases import planned, some_regions
from safetensors.torch import save_file

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import limits
from deconv_cli.io.regions import open_regions

SAMPLES = np.random.default_rng(6).random((3, 20, 31)).astype("float32")


def test_every_part_is_what_the_tensor_has_there_in_a_file_larger_than_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file({"image": torch.from_numpy(SAMPLES), "other": torch.zeros(2, dtype=torch.float16)}, path)
    monkeypatch.setattr(limits, "memory_budget", lambda: 100)
    source = open_regions(path, tensor="image", axes="cyx")
    assert (source.shape, source.dtype, source.axes) == ((3, 20, 31), "float32", "CYX")
    for region in some_regions(source.shape, 6):
        np.testing.assert_array_equal(source.read(region), SAMPLES[region])
    assert open_regions(path, tensor="other").dtype == "float16"
    with pytest.raises(UsageError, match="no tensor named 'none'"):
        open_regions(path, tensor="none")
    with pytest.raises(MalformedInputError, match="choose with tensor=NAME"):
        open_regions(path)
    with pytest.raises(
        UsageError, match=r"written as a whole; choose a name for TIFF \(\.tif\), Zarr \(\.zarr\) or NumPy"
    ):
        planned(source, tmp_path / "b.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(MalformedInputError):
        source.read((slice(0, 1), slice(0, 1), slice(0, 1)))
