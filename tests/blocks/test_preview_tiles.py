"""Pieces are looked at side by side, and what was found comes in their order."""

import os
import threading

import pytest
import torch
from block_cases import blurred, planned, scene

import deconv_cli
from deconv_cli.blocks.preview_tiles import PreviewTile, map_tiles, workers_for
from deconv_cli.workflows.progress_listener import ProgressListener

WINDOWS = [PreviewTile((), (n, n)) for n in range(4)]


class Steps(ProgressListener):
    def __init__(self):
        self.told = []

    def begin(self, step, **_):
        self.told.append(step)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_pieces_come_in_order_and_as_many_at_once_as_there_are_workers(n_workers):
    together, progress = threading.Barrier(n_workers, timeout=120), Steps()

    def look_at(window, listener):
        together.wait()
        listener.begin("restoring")
        return window.center[0]

    assert map_tiles(look_at, WINDOWS, "halo", progress, n_workers) == [0, 1, 2, 3]
    last = "halo: piece 4 of 4" if n_workers > 1 else "halo: piece 4 of 4: restoring"
    assert progress.told[-1] == last
    assert len(progress.told) == 4


def test_no_more_at_once_than_the_memory_of_a_block_holds(tmp_path, monkeypatch):
    kernel = deconv_cli.make_kernel("gaussian:1")
    blurred(tmp_path, scene(150, 140)[None], kernel, "unknown")
    problem = planned(tmp_path, kernel).task.problem
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert workers_for(problem, (16, 16)) > 1
    assert workers_for(problem, (4096, 4096)) == 1
