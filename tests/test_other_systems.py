"""What Windows, macOS, Linux and disks without links do differently, played on this one; freed memory goes back."""

import errno
import os
import subprocess
import sys

import pytest

from deconv_cli.allocator import kept_bytes
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


@pytest.mark.skipif(not sys.platform.startswith("linux") or kept_bytes() == 0, reason="needs glibc 2.33 or newer")
def test_much_freed_memory_goes_back_to_the_system():
    script = """
import torch
from deconv_cli.allocator import keep_freed_memory, kept_bytes, return_freed_memory
assert keep_freed_memory()
blocks = [torch.ones(2**24) for _ in range(4)]
last = torch.ones(2**10)
del blocks
print(kept_bytes())
for limit in (2**30, 2**20):
    return_freed_memory(limit)
    print(kept_bytes())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    held, above, below = (int(number) for number in done.stdout.split())
    assert held > 200 * 2**20
    assert above > held / 2
    assert below < held / 4


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone hands the peak of a parent down to its children")
def test_the_peak_of_memory_is_not_that_of_a_larger_parent():
    ask = "from deconv_cli.allocator import peak_memory_bytes; print(peak_memory_bytes())"
    parent = (
        f"import subprocess, sys; x = bytearray(3 * 10**8); subprocess.run([sys.executable, '-c', {ask!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 10**6 < int(done.stdout) < 2 * 10**8
