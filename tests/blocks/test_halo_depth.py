"""The seams of blocks are measured where the data vary most, and at the frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from block_cases import planned

import deconv_cli
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.block_task import BlockReconstruction, BlockSummary


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
