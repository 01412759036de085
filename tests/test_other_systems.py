"""What other systems, disks and threads do differently, played on this one."""

import errno
import logging
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import tifffile

from deconv_cli.allocator import kept_bytes
from deconv_cli.commands import console, input_files
from deconv_cli.commands.work import Job
from deconv_cli.errors import FileAccessError, UsageError, warnings_here
from deconv_cli.io.atomic import name_new, partial_path
from deconv_cli.io.codecs.npy import NpyTarget
from deconv_cli.io.codecs.tiff_reader import opened_tiff


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


def in_a_thread(call):
    """Call something in a thread of its own; gives what it raised."""
    raised = []

    def caught():
        try:
            call()
        except (Warning, ValueError) as error:
            raised.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join(10)
    return raised


def warn():
    warnings.warn("damaged", UserWarning, stacklevel=1)


def test_warnings_are_errors_in_this_thread_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warn()
        with warnings_here("error"):
            with pytest.raises(UserWarning, match="damaged"):
                warn()
            assert in_a_thread(warn) == []
        warn()


def test_warnings_are_ignored_in_this_thread_alone():
    with warnings_here("ignore"):  # in tests they are errors
        warn()
        assert len(in_a_thread(warn)) == 1
    with pytest.raises(UserWarning):
        warn()


def test_a_warning_that_was_shown_before_is_an_error_all_the_same():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        warn()
        with warnings_here("error"), pytest.raises(UserWarning):
            warn()


def test_what_tifffile_logs_of_damage_stops_the_thread_that_reads_alone(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4, 5), np.uint8))
    log = logging.getLogger("tifffile")
    with opened_tiff(tmp_path / "x.tif"):
        assert in_a_thread(lambda: log.warning("another file")) == []
    with pytest.raises(ValueError, match="this file"), opened_tiff(tmp_path / "x.tif"):
        log.warning("this file")
