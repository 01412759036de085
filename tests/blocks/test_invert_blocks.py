"""A picture that is restored block by block is the picture that is restored as a whole, up to the measured seam."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from block_cases import BLOCKS, OPTIONS, blurred, describe, laid_out, planned, scene

import deconv_cli
from deconv_cli.blocks import block_plan, preview_tiles
from deconv_cli.blocks.block_extras import ExtraFiles
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.block_problem import BlockProblem, block_bytes
from deconv_cli.blocks.block_task import BlockReconstruction, BlockSummary
from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.errors import TooLargeError, UsageError
from deconv_cli.io import read_image
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.workflows import noise_of_data


def difference(found, whole, data):
    return np.abs(found - whole.image.numpy()).max() / float(data.max() - data.min())


EXHAUSTIVE = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("zero", "replicate")]


@pytest.mark.parametrize("boundary", ["unknown", *EXHAUSTIVE])
def test_blocks_are_the_whole_up_to_the_predicted_seam(tmp_path, boundary):
    kernel = deconv_cli.make_kernel("gaussian:1")
    y = blurred(tmp_path, scene(150, 140)[None], kernel, boundary)
    found = invert_blocks(
        tmp_path / "in.npy", kernel, tmp_path / "out.npy", blocks=BLOCKS, boundary=boundary, **OPTIONS
    )
    whole = deconv_cli.invert(y, kernel, boundary=boundary, **OPTIONS)
    assert found.summary is not None
    assert found.summary.n_blocks == 9
    assert difference(np.load(tmp_path / "out.npy"), whole, y) <= found.plan.halo.predicted <= 1e-3
    # Beyond its own pixels a block has a closed or unknown edge, which the picture does not have.
    assert found.summary.residual_rms == pytest.approx(whole.residual.root_mean_square, rel=0.02)
    assert found.seam is not None
    assert found.seam <= found.plan.halo.predicted
    assert not found.doubts


@pytest.mark.parametrize("is_full", [False, True])
def test_parts_of_a_photograph_agree_wherever_they_begin(tmp_path, monkeypatch, is_full):
    monkeypatch.setattr(noise_of_data, "TILE", 64)
    kernel, picture = deconv_cli.make_kernel("gaussian:1"), scene(90, 220)
    picture[30:36, 160:200] = 700
    y = blurred(tmp_path, picture[None], kernel, "unknown")
    if is_full:
        np.save(tmp_path / "in.npy", y.clamp(0, 255).round().byte().numpy())
    problem = laid_out(tmp_path, kernel, prior="photo", lam=None)
    settings = replace(problem.resolution.settings, noise_levels=(1.0,))
    problem = replace(problem, resolution=replace(problem.resolution, settings=settings))
    pipeline, core, found = problem.pipeline(), ((0, 90), (140, 220)), []
    for first in (0, 77):
        data = ((0, 90), (first, 220))
        result = problem.restore(problem.read((), data), data, pipeline)
        assert result.has_bounds == is_full
        found.append(problem.crop(result.image, data, core))
    assert float((found[1] - found[0]).abs().max()) < 1e-3 * 255


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("formula", "size", "block", "options"),
    [
        ("box:3", (130, 120), (64, 64), {"method": "richardson-lucy", "iterations": 20}),
        ("gaussian3d:0.7@0.7", (12, 90, 80), (12, 48, 48), {"lam": 0.1, "dimensions": 3}),
    ],
)
def test_counts_and_stacks_in_blocks_come_to_the_whole(tmp_path, formula, size, block, options):
    kernel = deconv_cli.make_kernel(formula)
    y = blurred(tmp_path, scene(*size)[None], kernel, "unknown")
    options, blocks = {"defaults": "picture", **options}, BlockOptions(10**8, block)
    found = invert_blocks(tmp_path / "in.npy", kernel, tmp_path / "out.npy", blocks=blocks, **options)
    whole = deconv_cli.invert(y, kernel, **options)
    assert [n == side for n, side in zip(block, size, strict=True)] == [n == 0 for n in found.plan.halo.halo]
    assert difference(np.load(tmp_path / "out.npy"), whole, y) <= found.plan.halo.predicted <= 1e-3


def photograph(folder, size, kernel):
    """Write a blurred and noisy photograph."""
    sharp = read_image(Path(__file__).parents[2] / "sample_images" / "camera.png").values[0].repeat(1, 3, 3)
    return blurred(folder, sharp[:, 100 : 100 + size, 100 : 100 + size], kernel, "unknown")


@pytest.mark.parametrize("assumed", ["motion:5@0", "motion:5@90"])
def test_a_kernel_that_pieces_contradict_is_doubted(tmp_path, monkeypatch, assumed):
    monkeypatch.setattr(preview_tiles, "MAX_SAMPLES", 128**2)
    photograph(tmp_path, 192, deconv_cli.make_kernel("motion:5@0"))
    files = LargeFileOptions(extra=ExtraFiles(trust_mask=str(tmp_path / "mask.npy")))
    kernel, blocks = deconv_cli.make_kernel(assumed), BlockOptions(10**8, (96, 96))
    options = {"files": files, "blocks": blocks, "defaults": "picture", "lam": 0.03}
    found = invert_blocks(tmp_path / "in.npy", kernel, tmp_path / "out.npy", **options)
    assert found.summary.n_blocks > 1
    is_wrong = assumed != "motion:5@0"
    assert np.load(tmp_path / "mask.npy").any() != is_wrong
    assert found.record["is_trusted"] != is_wrong
    if is_wrong:
        (doubt,) = found.doubts
        assert re.match(r"in [23] of 3 pieces of the picture that were tested: ", doubt.sentence)
        assert doubt.sentence.endswith(ResidualFinding.WRONG_KERNEL.sentence)


def with_halo(run, halo):
    narrow = replace(run.task.plan.halo, halo=halo, at_frame=halo)
    return replace(run, task=replace(run.task, plan=replace(run.task.plan, halo=narrow)))


def test_a_seam_above_the_plan_is_doubted(tmp_path):
    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(100, 90)[None], kernel, "unknown")
    found = with_halo(planned(tmp_path, kernel), (2, 7)).finish(SerialScheduler(), describe)
    (doubt,) = found.doubts
    assert re.match(
        r"with a halo of 2×7 blocks differ by .* beside a seam, more than the planned .*; restore it as", doubt.sentence
    )
    assert found.record["is_trusted"] is False


def test_a_seam_that_can_be_seen_is_noted_and_doubted_though_it_was_planned(tmp_path):
    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(100, 90)[None], kernel, "unknown")
    found = planned(tmp_path, kernel).finish(SerialScheduler(), describe)
    assert not found.doubts
    assert not found.plan.seam_notes
    halo = replace(found.plan.halo, worst=found.plan.halo.range / 100)
    plan = replace(found.task, plan=replace(found.plan, halo=halo))
    wide = replace(found, task=plan, summary=replace(found.summary, seam=0.03 * halo.range))
    sentence = "blocks differ by 3 % of the range at a seam; use a larger block_size"
    assert wide.record["doubts"] == [{"reason": "seam", "sentence": sentence}]
    (note,) = wide.plan.seam_notes
    assert note in wide.notes
    assert "at the frame blocks may differ by 5 % of the range at a seam, instead of 0.1 %" in note
    assert "a larger block_size or λ brings" in note
    (note,) = replace(wide.plan, choices=replace(wide.plan.choices, lams=())).seam_notes
    assert "a larger block_size brings" in note  # a prior without λ


def test_a_block_that_does_not_fit_the_memory_is_refused_before_any_tile_is_restored(tmp_path, monkeypatch):
    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(150, 140)[None], kernel, "unknown")
    budget = int(block_plan.SHARE * block_bytes(laid_out(tmp_path, kernel), (75, 70))) - 1
    monkeypatch.setattr(block_plan, "find_tiles", lambda *_: pytest.fail("tiles were read"))
    cut = BlockOptions(budget, (75, 70))
    with pytest.raises(TooLargeError, match=r"even the smallest block of .* use more memory, smaller blocks"):
        invert_blocks(tmp_path / "in.npy", kernel, tmp_path / "out.npy", blocks=cut, **OPTIONS)


@pytest.mark.parametrize("boundary", ["reflect", "unknown"])
def test_a_part_at_the_frame_is_solved_without_long_iterations(tmp_path, boundary):
    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(150, 140)[None], kernel, boundary)
    problem, data = laid_out(tmp_path, kernel, boundary=boundary, penalty="gradient", lam=1e-4), ((0, 64), (30, 94))
    found = problem.restore(problem.read((), data), data, problem.pipeline())
    assert found.choice.method == "strip"  # a torus along the second axis would leave 500 iterations


@pytest.mark.parametrize(("background", "n_taps"), [(0.0, 11), (100.0, 11), (0.0, 3)])
def test_pieces_that_are_flat_do_not_make_the_halo_narrow(tmp_path, monkeypatch, background, n_taps):
    monkeypatch.setattr(preview_tiles, "MAX_SAMPLES", 24**2)  # so that the first nine miss what there is
    y = torch.full((1, 150, 140), background)
    y[:, 30:34, 64:66] += 100
    np.save(tmp_path / "in.npy", y.numpy())
    left_out = (11 - n_taps) // 2
    kernel = deconv_cli.make_kernel("gaussian:1")[left_out : left_out + n_taps, left_out : left_out + n_taps]
    found = invert_blocks(tmp_path / "in.npy", kernel, tmp_path / "out.npy", blocks=BLOCKS, **OPTIONS)
    assert min(found.plan.halo.halo) >= max(n_taps // 2, 4)
    whole = deconv_cli.invert(y, kernel, **OPTIONS)
    assert difference(np.load(tmp_path / "out.npy"), whole, y) <= found.plan.halo.predicted


def test_pixels_on_the_edge_of_the_frame_are_as_right_as_those_inside(tmp_path):
    y, kernel = torch.rand(400, 256, generator=torch.Generator().manual_seed(0)), torch.full((1, 7), 1 / 7)
    np.save(tmp_path / "in.npy", y.numpy())
    options = OPTIONS | {"lam": 0.03}
    invert_blocks(tmp_path / "in.npy", kernel, tmp_path / "out.npy", blocks=BlockOptions(10**8, (200, 128)), **options)
    exact = deconv_cli.invert(y.double()[None], kernel.double(), tolerance=1e-10, **options).image[0].numpy()
    off = np.abs(np.load(tmp_path / "out.npy").reshape(y.shape) - exact)
    assert off.max() <= 1.5 * off[40:-40, 40:-40].max()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lam": 1e-2}, "use a larger lam, or restore it as a whole, without block_size"),
        ({"method": "richardson-lucy", "iterations": 400}, "use fewer iterations, or restore it as a whole"),
        ({"boundary": "circular"}, "boundary circular joins opposite edges, which never lie in one block; use another"),
        ({"prior": "tv"}, "prior tv needs the whole image, because its iteration ends elsewhere in each block; use"),
    ],
)
def test_blocks_that_cannot_agree_are_refused(tmp_path, options, says):
    kernel = deconv_cli.make_kernel("disk:3")
    blurred(tmp_path, scene(100, 90)[None], kernel, "unknown")
    paths = tmp_path / "in.npy", tmp_path / "out.npy"
    with pytest.raises(UsageError, match=says):
        invert_blocks(paths[0], kernel, paths[1], blocks=BLOCKS, defaults="picture", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_the_images_of_a_series_that_fit_are_blocks_without_seams(tmp_path):
    kernel, frames = deconv_cli.make_kernel("gaussian:1"), torch.stack([scene(40, 36, seed=n) for n in (3, 4, 5)])
    tifffile.imwrite(tmp_path / "in.tif", frames.numpy(), imagej=True, metadata={"axes": "TYX"})
    options = OPTIONS | {"lam": 1e-3, "boundary": "zero"}
    found = invert_blocks(
        tmp_path / "in.tif", kernel, tmp_path / "out.npy", blocks=BlockOptions(10**8, (40, 36)), **options
    )
    assert found.plan.halo.halo == (0, 0)
    assert found.plan.halo.predicted == 0
    whole = np.stack([deconv_cli.invert(frame[None], kernel, **options).image[0].numpy() for frame in frames])
    assert np.abs(np.load(tmp_path / "out.npy")[:, 0] - whole).max() < 1e-4 * np.abs(whole).max()


def test_pieces_may_reach_beyond_the_frame(tmp_path):
    kernel = 0.02 * deconv_cli.make_kernel("box:15")  # whose half is more than what surrounds a piece here
    kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] += 0.98
    y = blurred(tmp_path, scene(48, 100)[None], kernel, "unknown")
    options = OPTIONS | {"lam": 0.1}
    found = invert_blocks(
        tmp_path / "in.npy", kernel, tmp_path / "out.npy", blocks=BlockOptions(10**8, (24, 50)), **options
    )
    whole = deconv_cli.invert(y, kernel, **options)
    assert difference(np.load(tmp_path / "out.npy"), whole, y) <= found.plan.halo.predicted <= 1e-3


def test_an_axis_that_is_too_short_to_be_cut(tmp_path):
    kernel = deconv_cli.make_kernel("box:3")
    blurred(tmp_path, scene(18, 100)[None], kernel, "unknown")
    with pytest.raises(UsageError, match="18 samples is too short to be cut"):
        invert_blocks(tmp_path / "in.npy", kernel, tmp_path / "out.npy", blocks=BlockOptions(10**8, (9, 50)), **OPTIONS)


def test_full_samples_are_measurements_under_white_noise_in_blocks_too(tmp_path):
    kernel = deconv_cli.make_kernel("gaussian:1")
    y = deconv_cli.forward(2 * scene(100, 90)[None], kernel, boundary="reflect").clamp(0, 255).round().byte()
    tifffile.imwrite(tmp_path / "in.tif", y[0].numpy())
    options = OPTIONS | {"lam": 0.03, "noise": "white", "light": "stored"}
    found = invert_blocks(tmp_path / "in.tif", kernel, tmp_path / "out.npy", blocks=BLOCKS, **options)
    assert found.summary.n_blocks == 4
    whole = deconv_cli.invert(y, kernel, **options)
    assert difference(np.load(tmp_path / "out.npy"), whole, y.float()) <= 1e-3


@pytest.fixture
def run(tmp_path):
    """A plan for a flat picture of 4 × 4 blocks that is bright where four of them meet."""
    y = 100 + torch.randn(1, 192, 192, generator=torch.Generator().manual_seed(0))
    y[:, 92:100, 140:148] += 100
    np.save(tmp_path / "in.npy", y.numpy())
    return planned(tmp_path, deconv_cli.make_kernel("gaussian:1"), blocks=BlockOptions(10**8, (48, 48)), lam=0.1)


def test_the_corner_with_the_most_detail_is_measured(run):
    assert run.task.grid.n_along == (1, 4, 4)
    assert run.task.plan.seams[0] == 6  # its corner is at (96, 144)


def test_pixels_on_the_edge_of_the_frame_are_measured(run, monkeypatch):
    cores = [run.task.grid.block(number).core for number in run.task.plan.seams]
    assert any(start == 0 or stop == 192 for core in cores for start, stop in core)
    restore = BlockProblem.restore

    def off_in_the_first_row(problem, values, data, *others, **options):
        result = restore(problem, values, data, *others, **options)
        result.image[..., 0, :] += 1000.0 * data[1][0]  # otherwise from block to block along the edge
        return result

    monkeypatch.setattr(BlockProblem, "restore", off_in_the_first_row)
    run.task.target.create()
    task = replace(run.task, plan=replace(run.task.plan, seams=(1,)))
    assert task.grid.block(1).core == ((0, 48), (48, 96))
    done = task(1)
    assert done.seam >= 1000.0
    found = BlockReconstruction(task, BlockSummary.of([done], 1))
    assert any("beside a seam" in doubt.sentence for doubt in found.doubts)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_too_narrow_a_halo_leaves_is_measured_along_either_axis(run, axis):
    plan = run.task.plan
    run.task.target.create()
    assert run.task(6).seam <= plan.halo.predicted * plan.halo.range
    halo = tuple(1 if at == axis else n for at, n in enumerate(plan.halo.halo))
    narrow = replace(run.task, plan=replace(plan, halo=replace(plan.halo, halo=halo, at_frame=halo)))
    assert narrow(6).seam > plan.halo.predicted * plan.halo.range
