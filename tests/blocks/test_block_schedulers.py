"""Blocks have the same bytes whoever restores them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from block_cases import planned

import deconv_cli
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.checkpoint import Checkpoint
from deconv_cli.blocks.invert_blocks import BlockRun, run_blocks
from deconv_cli.schedulers.local_workers import SerialScheduler, ThreadPool
from deconv_cli.schedulers.scheduler import JobShare


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


def restored(task, folder, scheduler):
    task = replace(task, target=replace(task.target, path=folder / "out.npy"))
    ledger = Checkpoint.of(task.target.path)
    ledger.write_plan(task.plan)
    summary = run_blocks(task, ledger, scheduler, None, task.grid.order())
    assert summary.n_redone == summary.n_blocks == 9
    task.target.finish({})
    return task.target.path.read_bytes()


@pytest.fixture(scope="module")
def expected(task, tmp_path_factory):
    return restored(task, tmp_path_factory.mktemp("serial"), SerialScheduler())


def test_threads_give_the_same_bytes(task, expected, tmp_path):
    assert restored(task, tmp_path, ThreadPool(3)) == expected


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
