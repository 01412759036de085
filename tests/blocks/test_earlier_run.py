"""A run that is gone on with knows what earlier ones left: a whole result, parts of it, or what is none of its own."""

import contextlib
import os
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from block_cases import blurred, describe, planned, scene

import deconv_cli
from deconv_cli.blocks.earlier_run import BlocksCompleteError
from deconv_cli.blocks.plan_extras import ExtraFiles
from deconv_cli.errors import DeconvError, FileAccessError, UsageError
from deconv_cli.io import hidden_names, read_image
from deconv_cli.io.folders import remove
from deconv_cli.schedulers.scheduler import JobShare
from deconv_cli.schedulers.serial import SerialScheduler

KERNEL = deconv_cli.make_kernel("gaussian:1")


@pytest.fixture
def folder(tmp_path):
    blurred(tmp_path, scene(100, 90)[None], KERNEL, "unknown")
    return tmp_path


def begin(folder, n_jobs=2, **options):
    """Restore the share of the first of several jobs."""
    run = planned(folder, KERNEL, resume=True, **options)
    assert run.finish(SerialScheduler(), describe, share=JobShare(1, n_jobs)).summary is None
    return run.ledger


def go_on(folder, **options):
    return planned(folder, KERNEL, resume=True, **options).finish(SerialScheduler(), describe)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_complete_is_told_by_its_record_and_left_alone(folder):
    planned(folder, KERNEL).finish(SerialScheduler(), describe)
    written = (folder / "out.npy").read_bytes()
    with pytest.raises(BlocksCompleteError, match=r"out\.npy' is complete already") as complete:
        planned(folder, KERNEL, resume=True)
    assert complete.value.record["blocks"]["n_redone"] == 4
    assert complete.value.record["output"]["path"] == str(folder / "out.npy")
    with pytest.raises(UsageError, match=r"out\.npy' exists already; choose another name, or force=True"):
        planned(folder, KERNEL, resume=True, boundary="zero")
    assert (folder / "out.npy").read_bytes() == written
    assert names_in(folder) == ["in.npy", "out.npy", "out.npy.json"]


def assert_that_force_alone_forgets(folder, ledger, n_done):
    assert len(ledger.results()) == n_done > 0
    begin(folder, n_jobs=4, force=True)
    assert len(ledger.results()) == 1
    assert go_on(folder).summary.n_redone == 3
    assert names_in(folder) == ["in.npy", "out.npy", "out.npy.json"]


def test_what_is_begun_with_other_settings_is_forgotten_by_force_alone(folder):
    ledger = begin(folder, boundary="zero")
    n_done = len(ledger.results())
    with pytest.raises(UsageError, match=r"another input, kernel or settings.*give force=True to forget what it did"):
        planned(folder, KERNEL, resume=True)
    assert_that_force_alone_forgets(folder, ledger, n_done)


@pytest.mark.parametrize("damage", [b"\xff\x00", b'{"number": 3, "\xc3', b"[1]"])
def test_a_block_whose_line_is_damaged_is_done_again(folder, damage):
    ledger = begin(folder)
    n_done = len(ledger.results())
    (lines,) = ledger.folder.glob("done-*.jsonl")
    whole = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(damage + b"\n" + b"".join(whole[1:]))
    assert len(ledger.results()) == n_done - 1
    assert go_on(folder).summary.n_redone == 4 - (n_done - 1)


@pytest.mark.parametrize("damage", [Path.unlink, lambda plan: plan.write_text('{"fingerprint"')], ids=["gone", "torn"])
def test_blocks_that_are_done_under_a_plan_that_is_gone_or_damaged_are_forgotten_by_force_alone(folder, damage):
    ledger = begin(folder)
    damage(ledger.folder / "plan.json")
    n_done = len(ledger.results())
    with pytest.raises(DeconvError, match=r"out\.npy.*force=True starts over"):
        planned(folder, KERNEL, resume=True)
    assert_that_force_alone_forgets(folder, ledger, n_done)


def test_what_is_left_of_a_plan_that_was_being_written_holds_no_run_up(folder):
    (folder / ".out.npy.blocks").mkdir()
    (folder / ".out.npy.blocks" / "plan-host-1.json").write_text("{")
    assert go_on(folder).summary.n_redone == 4


def test_blocks_whose_file_is_gone_are_none_and_a_run_that_is_ended_as_it_concludes_goes_on_there(folder):
    begin(folder)
    hidden, aside = folder / ".out.npy.partial", folder / "aside"
    hidden.rename(aside)
    with pytest.raises(FileAccessError, match="were written into is gone, and they with it; force=True starts over"):
        go_on(folder)
    assert not (folder / "out.npy").exists()
    aside.rename(hidden)

    def is_ended(found):
        raise KeyboardInterrupt

    concluded = []
    with pytest.raises(KeyboardInterrupt):
        planned(folder, KERNEL, resume=True).finish(SerialScheduler(), describe, conclude=is_ended)
    written = (folder / "out.npy").read_bytes()
    again = planned(folder, KERNEL, resume=True)
    assert again.finish(SerialScheduler(), describe, conclude=concluded.append).summary.n_redone == 0
    assert len(concluded) == 1
    assert (folder / "out.npy").read_bytes() == written
    assert names_in(folder) == ["in.npy", "out.npy", "out.npy.json"]


class Ended(BaseException):
    """In the place of SIGKILL: once it was raised, nothing changes the disk any more, whatever cleans up."""


@dataclass
class EndsAt:
    """Ends this process, as far as a folder is concerned, at one of the steps that change it."""

    folder: Path | None = None
    n_left: int = 0

    def __call__(self, event, args):
        if self.folder is None or not self._is_change(event, args):
            return
        self.n_left -= 1
        if self.n_left < 0:
            raise Ended

    def _is_change(self, event, args):
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        is_step = event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
        return is_step and isinstance(args[0], str | Path) and self.folder in Path(args[0]).parents


@pytest.fixture(scope="module")
def ends():
    hook = EndsAt()
    sys.addaudithook(hook)  # which cannot be taken away again, and is idle without a folder
    return hook


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["out.npy", "out.tif", "out.ome.zarr"])
def test_at_whatever_step_a_run_is_ended_the_next_one_comes_to_the_same(folder, ends, name):
    pytest.importorskip("zarr")
    files = {"extra": ExtraFiles(error_map=folder / f"map_{name}", trust_mask=folder / f"mask_{name}"), "name": name}
    outputs = [folder / name, folder / f"map_{name}", folder / f"mask_{name}"]
    run = planned(folder, KERNEL, predict=True, **files)
    run.finish(SerialScheduler(), describe)
    expected, there = [content_of(path) for path in outputs], names_in(folder)
    for n_steps in count():
        for path in outputs:
            remove(path)
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)
        ends.folder, ends.n_left = folder, n_steps
        try:
            run.finish(SerialScheduler(), describe)
            break
        except (Ended, DeconvError):
            assert ends.n_left < 0
        finally:
            ends.folder = None
        hidden_names._left_in.cache_clear()  # as in another process
        with contextlib.suppress(BlocksCompleteError):
            planned(folder, KERNEL, predict=True, resume=True, **files).finish(SerialScheduler(), describe)
        assert [content_of(path) for path in outputs] == expected, n_steps
        assert names_in(folder) == there, n_steps
    assert n_steps > 20


def content_of(path):
    return read_image(path).values.numpy().tobytes()
