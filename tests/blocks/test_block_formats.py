"""A picture is restored block by block from and into tiles and chunks, as it is as a whole up to the predicted seam."""

import numpy as np
import pytest
import tifffile
import torch

import deconv_cli
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
from deconv_cli.io import read_image

zarr = pytest.importorskip("zarr")
OPTIONS = {"lam": 0.5, "boundary": "reflect", "defaults": "picture"}


def as_tiff(path, samples):
    tifffile.imwrite(path, samples, tile=(32, 32), compression="zlib")


def as_zarr(path, samples):
    array = zarr.create_array(path, shape=samples.shape, chunks=(32, 32), dtype="float32", dimension_names=["y", "x"])
    array[...] = samples


SMALL, LARGE = (128, 136), (530, 600)
"""Larger than chunks that are kept, and than the tiles and chunks that are made."""
KINDS = [
    (as_zarr, SMALL, "out.ome.zarr"),
    *(
        pytest.param(make, size, name, marks=pytest.mark.exhaustive)
        for make, size, name in (
            (as_zarr, SMALL, "out.zarr"),
            (as_zarr, LARGE, "out.tif"),
            (as_tiff, LARGE, "out.zarr"),
        )
    ),
]


@pytest.mark.parametrize(("make", "size", "name"), KINDS)
def test_blocks_are_the_whole_in_every_format(tmp_path, monkeypatch, make, size, name):
    monkeypatch.chdir(tmp_path)
    samples = np.random.default_rng(3).random(size).astype("float32")
    make(tmp_path / "in", samples)
    kernel = deconv_cli.make_kernel("gaussian:0.5")
    target = tmp_path / name
    blocks, files = BlockOptions(10**8, (64, 64)), LargeFileOptions(axes="YX")
    found = invert_blocks(tmp_path / "in", kernel, target, files=files, blocks=blocks, **OPTIONS)
    assert found.summary.n_blocks > 1
    written = read_image(target)
    whole = deconv_cli.invert(torch.from_numpy(samples)[None], kernel, **OPTIONS).image
    assert (written.values[0] - whole).abs().max() <= found.plan.halo.predicted * np.ptp(samples)
    assert written.record["command"] == "invert"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("make", "size", "name"), [(as_zarr, SMALL, "out.ome.zarr"), (as_tiff, LARGE, "out.tif")])
def test_a_picture_that_fits_the_memory_is_one_block_whatever_its_tiles(tmp_path, make, size, name):
    samples = np.random.default_rng(3).random(size).astype("float32")
    make(tmp_path / "in", samples)
    kernel, files = deconv_cli.make_kernel("box:5"), LargeFileOptions(axes="YX")
    found = invert_blocks(tmp_path / "in", kernel, tmp_path / name, files=files, lam=0.01, defaults="picture")
    assert found.summary.n_blocks == 1
    whole = deconv_cli.invert(torch.from_numpy(samples)[None], kernel, lam=0.01, defaults="picture").image
    assert (read_image(tmp_path / name).values[0] - whole).abs().max() <= 1e-3
