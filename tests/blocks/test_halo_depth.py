"""The halo of blocks inside and at the frame, and their seams, which are measured where the data vary most."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from block_cases import blurred, planned, scene

import deconv_cli
from deconv_cli.blocks import halo_depth
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.block_reconstruction import BlockReconstruction, BlockSummary


def test_pieces_that_judge_a_halo_lie_at_all_ends_of_the_frame(tmp_path, monkeypatch):
    seen, measure = [], halo_depth.measure_cut

    def noting(problem, tile, *others):
        found = measure(problem, tile, *others)
        # Where it is cut, pixels are the deeper the further they lie inside.
        ends = [bool(depth[at] > depth[inside]) for depth in found.depths for at, inside in ((0, 1), (-1, -2))]
        seen.append((tile.frame_axis, ends))
        return found

    monkeypatch.setattr(halo_depth, "measure_cut", noting)
    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(150, 140)[None], kernel, "unknown")
    planned(tmp_path, kernel)
    ends = [known for axis, known in seen if axis is not None]
    # Ahead and behind of each axis: a piece is not cut at the end where it meets the frame, and there alone.
    assert sorted(ends) == sorted([n == at for n in range(4)] for at in range(4))
    assert all(not any(known) for axis, known in seen if axis is None)


def test_edge_pixels_that_no_halo_suits_are_predicted_and_not_refused(tmp_path, monkeypatch):
    seen, measure = [], halo_depth.measure_cut

    def with_a_floor_at_the_frame(problem, tile, depth, *others):
        found = measure(problem, tile, depth, *others)
        seen.append(depth)
        return found if tile.frame_axis is None else replace(found, difference=found.difference + 1.0)

    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(150, 140)[None], kernel, "unknown")
    inside = planned(tmp_path, kernel).task.plan.halo
    monkeypatch.setattr(halo_depth, "measure_cut", with_a_floor_at_the_frame)
    halo = planned(tmp_path, kernel, name="other.npy").task.plan.halo
    assert len(set(seen)) == 2  # it is looked once deeper, and no more
    assert halo.worst >= 1.0
    assert halo.predicted > halo_depth.SEAM_TOLERANCE > inside.predicted
    assert all(abs(a - b) <= 1 for a, b in zip(halo.halo, inside.halo, strict=True))  # blocks inside are as they were
    assert all(
        a <= 2 * b for a, b in zip(halo.at_frame, inside.at_frame, strict=True)
    )  # and these not as wide as looked at


def test_blocks_that_reach_the_frame_have_a_halo_of_their_own(tmp_path, monkeypatch):
    measure = halo_depth.measure_cut

    def reaching_further_at_the_frame(problem, tile, depth, *others):
        found = measure(problem, tile, depth, *others)
        return found if tile.frame_axis is None else replace(found, difference=30 * found.difference)

    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(150, 140)[None], kernel, "unknown")
    monkeypatch.setattr(halo_depth, "measure_cut", reaching_further_at_the_frame)
    task = planned(tmp_path, kernel).task
    halo, grid = task.plan.halo, task.grid
    assert all(wide > narrow for wide, narrow in zip(halo.at_frame, halo.halo, strict=True))
    assert halo.predicted <= halo_depth.SEAM_TOLERANCE
    size, n_inside = task.problem.data_size, 0
    for block in map(grid.block, range(grid.n_blocks)):
        is_inside = all(start > 0 and stop < n for (start, stop), n in zip(block.data, size, strict=True))
        n_inside += is_inside
        for core, data, n, wide in zip(
            block.core, block.data, size, halo.halo if is_inside else halo.at_frame, strict=True
        ):
            assert data[0] <= max(core[0] - wide, 0)
            assert data[1] >= min(core[1] + wide, n)
    assert n_inside > 0


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
    assert any("beside a seam" in doubt for doubt in found.doubts)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_too_narrow_a_halo_leaves_is_measured_along_either_axis(run, axis):
    plan = run.task.plan
    run.task.target.create()
    assert run.task(6).seam <= plan.halo.predicted * plan.halo.range
    halo = tuple(1 if at == axis else n for at, n in enumerate(plan.halo.halo))
    narrow = replace(run.task, plan=replace(plan, halo=replace(plan.halo, halo=halo, at_frame=halo)))
    assert narrow(6).seam > plan.halo.predicted * plan.halo.range
