"""What Windows, macOS and disks without links do differently, played on this one."""

import errno
import os
import sys

import pytest

from deconv_cli.commands import console, input_files
from deconv_cli.commands.work import Job
from deconv_cli.errors import FileAccessError, UsageError
from deconv_cli.io.atomic import name_new, partial_path
from deconv_cli.io.codecs.npy import NpyTarget


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
