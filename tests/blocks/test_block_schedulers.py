"""Blocks have the same bytes whoever restores them, and though a run is killed."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from block_cases import planned
from piece_tasks import Noted

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


BEGINS = """
import pickle, sys
from deconv_cli.blocks.checkpoint import Checkpoint
from deconv_cli.blocks.invert_blocks import run_blocks
from deconv_cli.schedulers.scheduler import start_scheduler
from deconv_cli.schedulers.scheduler import WorkSettings

if __name__ == "__main__":
    task, settings = pickle.loads(open(sys.argv[1], "rb").read())
    with start_scheduler(WorkSettings(**settings)) as scheduler:
        run_blocks(task, Checkpoint.of(task.targets[-1].path), scheduler, None, task.grid.order())
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="a group of processes is killed")
@pytest.mark.parametrize("settings", [{"threads": 2}, {"jobs": 2}], ids=str)
def test_a_run_that_is_killed_as_a_whole_does_again_what_was_under_way(settings, task, expected, tmp_path):
    task = replace(task, target=replace(task.target, path=tmp_path / "out.npy"))
    ledger = Checkpoint.of(task.target.path)
    ledger.write_plan(task.plan)
    (tmp_path / "run.py").write_text(BEGINS)
    (tmp_path / "task").write_bytes(pickle.dumps((Noted(task, tmp_path), settings)))
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "task")]
    with subprocess.Popen(command, start_new_session=True, env=os.environ | {"PYTHONPATH": paths}) as run:
        while len(ledger.results()) < 3 and run.poll() is None:
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
    n_done = len(ledger.results())
    assert n_done < 9
    assert run_blocks(Noted(task, tmp_path), ledger, SerialScheduler(), None, task.grid.order()).n_redone == 9 - n_done
    n_begun = sum(len(path.read_text()) for path in tmp_path.glob("begun-*"))
    assert 0 <= n_begun - 9 <= 2  # workers
    task.target.finish({})
    assert task.target.path.read_bytes() == expected
