"""Zarr at the prompt: a folder that is one file is read, written and found in trees like any other."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.input_files import expand
from deconv_cli.io import read_image

zarr = pytest.importorskip("zarr")
SAMPLES = Path(__file__).parents[1] / "fixtures" / "ome_zarr"
BLUR = ("--kernel", "gaussian:0.6", "--boundary", "reflect")


@pytest.fixture(params=["v05", pytest.param("v04", marks=pytest.mark.exhaustive)])
def sample(request, tmp_path):
    """A copy of what another program wrote."""
    path = tmp_path / "in" / "pollen.ome.zarr"
    shutil.copytree(SAMPLES / f"{request.param}.ome.zarr", path)
    return path


def test_an_image_is_blurred_and_restored_as_an_image(deconv, sample, tmp_path):
    blurred, restored = tmp_path / "blurred.ome.zarr", tmp_path / "restored.ome.zarr"
    deconv("forward", sample, *BLUR, "-o", blurred)
    done = deconv("invert", blurred, "--kernel", "gaussian:0.6", "--lambda", "1e-8", "-o", restored)
    assert "recorded in the file by deconv forward" in done.stderr
    assert done.stdout == f"{restored}\n"
    np.testing.assert_allclose(read_image(restored).values, read_image(sample).values, atol=1)
    assert read_image(restored).metadata.channel_names == ("DAPI", "GFP")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blurred.ome.zarr", "in", "restored.ome.zarr"]


def test_in_a_tree_it_is_one_file_among_others(deconv, sample, tmp_path):
    folder = tmp_path / "in"
    np.save(folder / "a.npy", np.ones((8, 9), "float32"))
    np.save(sample / "of-another-program.npy", np.ones((8, 9), "float32"))
    (folder / "loop").symlink_to(folder)
    assert sorted(file.place.as_posix() for file in expand(folder)) == ["a.npy", "pollen.ome.zarr"]
    assert [file.path for file in expand(folder / "*.zarr")] == [sample]
    deconv("forward", folder, *BLUR, "-o", tmp_path / "out", "-q")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npy", "a.npy.json", "pollen.ome.zarr"]
    assert read_image(tmp_path / "out" / "pollen.ome.zarr").shape == (2, 3, 20, 26)


def test_an_address_is_one_sentence(deconv, sample):
    for words in (("-o", "s3://bucket/out/"), ("-o", "out", "--manifest", "s3://bucket/m.jsonl")):
        refused = deconv("forward", sample, sample / "..", *BLUR, *words, expect=ExitCode.USAGE)
        assert len(refused.errors) == 1
        assert "choose a path on this machine" in refused.errors[0]
