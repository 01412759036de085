"""The expected error and the mask are those of the whole picture."""

import numpy as np
import pytest
from block_cases import BLOCKS, OPTIONS, blurred, scene

import deconv_cli
from deconv_cli.blocks import preview_tiles as planning
from deconv_cli.blocks.block_extras import ErrorSample, ExtraFiles
from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
from deconv_cli.diagnostics.predicted_error import ErrorBand, ExpectedError

KERNEL = "gaussian:1"


def extra_files(folder):
    return ExtraFiles(folder / "map.npy", folder / "mask.npy")


def in_blocks(folder, **options):
    files = LargeFileOptions(extra=extra_files(folder))
    kernel = deconv_cli.make_kernel(KERNEL)
    options = OPTIONS | options
    return invert_blocks(folder / "in.npy", kernel, folder / "out.npy", files=files, blocks=BLOCKS, **options)


@pytest.mark.parametrize("boundary", ["unknown", pytest.param("zero", marks=pytest.mark.exhaustive)])
def test_error_and_mask_are_those_of_the_whole(tmp_path, boundary):
    truth, kernel = scene(100, 90)[None], deconv_cli.make_kernel(KERNEL)
    y = blurred(tmp_path, truth, kernel, boundary)
    found = in_blocks(tmp_path, boundary=boundary)
    whole = deconv_cli.invert(y, kernel, boundary=boundary, predict=True, **OPTIONS).predicted_error
    assert ((np.load(tmp_path / "mask.npy")[0] > 0) == whole.trusted.numpy()).all()
    ratio = np.load(tmp_path / "map.npy") / whole.map.numpy()
    assert np.abs(ratio - 1).max() < 0.01
    expected = found.expected_error
    assert expected.trusted_depth == whole.trusted_depth
    assert expected.trusted_share == pytest.approx(whole.trusted_share, abs=1e-12)
    assert expected.root_mean_square == pytest.approx(whole.root_mean_square, rel=0.01)
    assert "1 piece of 100×90 samples" in expected.pieces


@pytest.mark.exhaustive
@pytest.mark.parametrize("boundary", ["unknown", "reflect"])
def test_pieces_tell_as_much_as_the_whole_of_another_size(tmp_path, monkeypatch, boundary):
    monkeypatch.setattr(planning, "MAX_SAMPLES", 96**2)
    truth, kernel = scene(420, 400)[None], deconv_cli.make_kernel(KERNEL)
    y = blurred(tmp_path, truth, kernel, boundary)
    expected = in_blocks(tmp_path, boundary=boundary).expected_error
    whole = deconv_cli.invert(y, kernel, boundary=boundary, predict=True, **OPTIONS).predicted_error
    assert "5 pieces of 96×96 samples" in expected.pieces
    assert expected.root_mean_square == pytest.approx(whole.root_mean_square, rel=0.1)
    assert abs(expected.trusted_depth - whole.trusted_depth) <= 2
    # On the edge it is the frame of the whole that counts, not that of a piece that was cut out.
    assert expected.bands[0].predicted == pytest.approx(whole.bands[0].predicted, rel=0.25)
    ratio = np.load(tmp_path / "map.npy") / whole.map.numpy()
    assert np.quantile(np.abs(np.log(ratio)), 0.95) < np.log(1.25)


def test_the_error_of_an_estimate_without_parts_is_that_of_its_pieces_times_the_detail_of_the_whole():
    bands = tuple(ErrorBand(distance=k, n_pixels=9, predicted=2.0, estimate=5.0) for k in range(2))
    sample = ErrorSample((), ExpectedError(bands, None, 1.0, None, n_probes=1, seed=0), n_pieces=1, sides=(3, 3))
    found = sample.of_whole((8, 8), mean_square=16.0, is_trusted=False)
    assert [band.predicted for band in found.bands] == pytest.approx([4.0, 4.0])
    assert found.root_mean_square == pytest.approx(4.0)
