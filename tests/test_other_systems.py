"""What Windows, macOS and disks without links do differently, played on this one."""

import errno
import multiprocessing
import os
import sys
from types import SimpleNamespace

import pytest

from deconv_cli.commands import console, input_files
from deconv_cli.commands.work import Job
from deconv_cli.errors import FileAccessError, UsageError
from deconv_cli.io.atomic import name_new, partial_path
from deconv_cli.io.codecs.npy import NpyTarget
from deconv_cli.schedulers import local_workers
from deconv_cli.schedulers.scheduler import Finished


@pytest.fixture
def without_links(monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


def test_a_disk_without_links_takes_unfinished_files_and_plans(tmp_path, without_links):
    path = tmp_path / "result.npy"
    target = NpyTarget(path=path, shape=(3, 4), dtype="float32", axes="YX", unit=(1, 1))
    assert not target.create()
    assert target.create()
    assert [found.name for found in tmp_path.iterdir()] == [partial_path(path).name]
    before = partial_path(path).read_bytes()
    (tmp_path / "own").write_bytes(b"second")
    with pytest.raises(FileExistsError):
        name_new(tmp_path / "own", partial_path(path))
    assert partial_path(path).read_bytes() == before


@pytest.mark.parametrize(("system", "is_refused"), [("win32", True), ("darwin", True), ("linux", False)])
def test_two_outputs_that_differ_by_capitals_are_one_file_where_folders_ignore_them(
    tmp_path, monkeypatch, system, is_refused
):
    jobs = [Job(tmp_path / f"{n}.npy", tmp_path / name) for n, name in enumerate(["Photo.npy", "photo.npy"])]
    monkeypatch.setattr(sys, "platform", system)
    if not is_refused:
        input_files.refuse_clashes(jobs, [], [])
        return
    with pytest.raises(UsageError, match=r"photo\.npy' would overwrite .*Photo\.npy', which this run writes too"):
        input_files.refuse_clashes(jobs, [], [])


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="only Linux has a file that finds one byte invalid")
def test_a_reader_that_left_is_an_invalid_argument_on_windows(monkeypatch):
    with console._StandardStream(os.eventfd(0), "w") as stream, pytest.raises(FileAccessError):
        stream.write(b"x")
    monkeypatch.setattr(sys, "platform", "win32")
    with console._StandardStream(os.eventfd(0), "w") as stream:
        assert stream.write(b"x") == 1


def test_a_process_that_crashed_on_windows_is_lost_and_does_not_end_the_run():
    worker = object.__new__(local_workers._Worker)
    worker._number = 7
    worker.pipe, other = multiprocessing.Pipe()
    other.close()
    worker.process = SimpleNamespace(join=lambda seconds: None, exitcode=0xC0000005)
    ended = worker.end()
    assert worker.is_lost
    assert "the process that did piece 7 was ended by code 0xc0000005" in str(ended.error)


def test_no_more_processes_work_than_the_system_can_wait_for(monkeypatch):
    begun, waited = [], []

    class Worker:
        is_lost = False

        def __init__(self, place, share):
            self.pipe = object()

        def begin(self, task, number):
            begun.append(number)

        def end(self):
            return Finished(begun[-1], result=0)

    def wait(pipes):
        waited.append(len(pipes))
        return pipes

    monkeypatch.setattr(local_workers, "_Worker", Worker)
    monkeypatch.setattr(local_workers, "wait", wait)
    monkeypatch.setattr(local_workers, "MAX_BUSY", 2)
    assert len(list(local_workers.ProcessPool(3).run(abs, range(5)))) == 5
    assert waited == [2, 2, 1]
