"""Blocks give what the whole picture gives: error, mask, saturated samples, and the same bytes from every worker."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from block_cases import BLOCKS, OPTIONS, blurred, planned, scene

import deconv_cli
from deconv_cli.blocks import preview_tiles as planning
from deconv_cli.blocks.block_extras import ErrorSample, ExtraFiles
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.checkpoint import Checkpoint
from deconv_cli.blocks.invert_blocks import BlockRun, LargeFileOptions, invert_blocks, run_blocks
from deconv_cli.diagnostics.predicted_error import ErrorBand, ExpectedError
from deconv_cli.schedulers.local_workers import SerialScheduler, ThreadPool
from deconv_cli.schedulers.scheduler import JobShare
from deconv_cli.solvers.clipped import CLOSE_TOLERANCE

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


TAPS = deconv_cli.make_kernel("gaussian:1")
LARGER = BlockOptions(10**8, (96, 96))
CHOSEN = OPTIONS | {"lam": 0.03}


def exposed(folder, factor):
    """Write a picture whose ground is white on one side, overexposed by a factor."""
    picture = factor * scene(230, 220)
    picture[:, 130:][picture[:, 130:] == 100 * factor] = 262.0
    y = deconv_cli.forward(picture[None], TAPS, boundary="reflect")
    y = (y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).round().clamp(0, 255).byte()
    np.save(folder / "in.npy", y.numpy())
    return y


def restored(folder, **options):
    files = LargeFileOptions(force=True, axes="CYX")
    return invert_blocks(folder / "in.npy", TAPS, folder / "out.npy", files=files, blocks=LARGER, **CHOSEN | options)


def test_blocks_agree_with_the_whole_at_all_samples_that_are_not_full(tmp_path):
    y = exposed(tmp_path, 1.5)
    found = restored(tmp_path)
    assert found.summary.n_blocks > 4
    assert found.doubts == ()
    assert found.summary.certificate < 5e-7  # what rounding leaves of the tolerance
    assert any("treated as lower bounds" in note for note in found.notes)
    whole = deconv_cli.invert(y, TAPS, tolerance=CLOSE_TOLERANCE, **CHOSEN)
    differs = (torch.from_numpy(np.load(tmp_path / "out.npy")) - whole.image).abs()
    assert float(differs[y < 245].max()) < 1e-3 * 255
    assert float(whole.image.max()) > 300


def test_a_picture_with_hardly_any_full_sample_has_no_bounds(tmp_path):
    y = exposed(tmp_path, 0.8)
    y[y > 200] = 200
    y[0, 60, 70] = 255
    np.save(tmp_path / "in.npy", y.numpy())
    found = restored(tmp_path)
    assert found.plan.choices.has_bounds is False
    assert found.notes == ()


def test_the_halo_is_as_wide_along_all_axes_beside_a_white_background(tmp_path):
    """Along the edge of white, most samples that are deep along one axis are full, and not compared."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.full((1, 480, 480), 275.0)
    picture[:, 60:210, 60:210] = torch.rand(1, 150, 150, generator=generator) * 120 + 60
    y = deconv_cli.forward(picture, TAPS, boundary="reflect")
    np.save(tmp_path / "in.npy", (y + torch.randn(y.shape, generator=generator)).round().clamp(0, 255).byte().numpy())
    found = restored(tmp_path)
    assert len(set(found.plan.halo.halo)) == 1
    assert found.doubts == ()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A blurred and noisy picture in a file."""
    path = tmp_path_factory.mktemp("picture") / "in.npy"
    draw = torch.Generator().manual_seed(3)
    scene = torch.rand(1, 12, 11, generator=draw).mul(255).repeat_interleave(12, 1).repeat_interleave(12, 2)
    y = deconv_cli.forward(scene, deconv_cli.make_kernel("gaussian:1"), boundary="reflect")
    np.save(path, (y + torch.randn(y.shape, generator=draw)).numpy())
    return path


@pytest.fixture(scope="module")
def task(picture):
    return planned(picture.parent, deconv_cli.make_kernel("gaussian:1"), blocks=BlockOptions(10**8, (48, 48))).task


def restored_by(task, folder, scheduler):
    task = replace(task, target=replace(task.target, path=folder / "out.npy"))
    ledger = Checkpoint.of(task.target.path)
    ledger.write_plan(task.plan)
    summary = run_blocks(task, ledger, scheduler, None, task.grid.order())
    assert summary.n_redone == summary.n_blocks == 9
    task.target.finish({})
    return task.target.path.read_bytes()


@pytest.fixture(scope="module")
def expected(task, tmp_path_factory):
    return restored_by(task, tmp_path_factory.mktemp("serial"), SerialScheduler())


def test_threads_give_the_same_bytes(task, expected, tmp_path):
    assert restored_by(task, tmp_path, ThreadPool(3)) == expected


def test_jobs_that_planned_at_the_same_time_follow_the_first_of_their_plans(task, expected, tmp_path):
    first = replace(task, target=replace(task.target, path=tmp_path / "out.npy"))
    chosen = replace(task.plan.choices, lams=(0.02,))  # as if another machine had more memory, and other noise
    other = replace(first, plan=replace(task.plan, core=(1, 96, 96), max_memory=2 * 10**8, choices=chosen))
    assert other.grid.n_blocks < first.grid.n_blocks
    ledger = Checkpoint.of(first.target.path)
    runs = [BlockRun(first, ledger), BlockRun(other, ledger)]
    summaries = [
        run.finish(SerialScheduler(), lambda found: {}, share=JobShare(job, 2)).summary
        for job, run in enumerate(runs, 1)
    ]
    assert summaries[0] is None
    assert summaries[1].n_blocks == 9
    assert first.target.path.read_bytes() == expected
