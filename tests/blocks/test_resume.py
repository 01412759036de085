"""A run that resumes finds what earlier runs left: a complete result, a part of one, or somebody else's files."""

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from block_cases import blurred, describe, planned, scene

import deconv_cli
from deconv_cli.blocks.block_extras import ExtraFiles
from deconv_cli.blocks.checkpoint import BlocksCompleteError
from deconv_cli.errors import DeconvError, FileAccessError, UsageError
from deconv_cli.io import read_image
from deconv_cli.io.files import remove
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.schedulers.scheduler import JobShare

KERNEL = deconv_cli.make_kernel("gaussian:1")


@pytest.fixture
def folder(tmp_path):
    blurred(tmp_path, scene(100, 90)[None], KERNEL, "unknown")
    return tmp_path


def begin(folder, n_jobs=2, **options):
    """Restore the share of the first of several jobs."""
    run = planned(folder, KERNEL, resume=True, **options)
    assert run.finish(SerialScheduler(), describe, share=JobShare(1, n_jobs)).summary is None
    return run.checkpoint


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


@pytest.mark.parametrize(
    ("options", "damage", "says"),
    [
        ({"boundary": "zero"}, Path.exists, "another input, kernel or settings.*give force=True to start over"),
        ({}, Path.unlink, r"out\.npy.*force=True starts over"),
        ({}, lambda plan: plan.write_text('{"fingerprint"'), r"out\.npy.*force=True starts over"),
    ],
    ids=["other settings", "plan gone", "plan torn"],
)
def test_what_another_run_left_is_forgotten_by_force_alone(folder, options, damage, says):
    ledger = begin(folder, **options)
    damage(ledger.folder / "plan.json")
    n_done = len(ledger.results())
    with pytest.raises(DeconvError, match=says):
        planned(folder, KERNEL, resume=True)
    assert len(ledger.results()) == n_done > 0
    begin(folder, n_jobs=4, force=True)
    assert len(ledger.results()) == 1
    assert go_on(folder).summary.n_redone == 3
    assert names_in(folder) == ["in.npy", "out.npy", "out.npy.json"]


def test_the_last_digits_of_a_kernel_hold_no_run_up(folder):
    begin(folder)
    assert planned(folder, KERNEL.double() * (1 + 1e-12), resume=True).is_resumed


@pytest.mark.parametrize("damage", [b"\xff\x00", b'{"number": 3, "\xc3', b"[1]"])
def test_a_block_whose_line_is_damaged_is_done_again(folder, damage):
    ledger = begin(folder)
    n_done = len(ledger.results())
    (lines,) = ledger.folder.glob("done-*.jsonl")
    whole = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(damage + b"\n" + b"".join(whole[1:]))
    assert len(ledger.results()) == n_done - 1
    assert go_on(folder).summary.n_redone == 4 - (n_done - 1)


def test_what_is_left_of_a_plan_that_was_being_written_holds_no_run_up(folder):
    (folder / ".out.npy.blocks").mkdir()
    (folder / ".out.npy.blocks" / "plan-host-1.json").write_text("{")
    assert go_on(folder).summary.n_redone == 4


def test_a_run_that_is_ended_as_it_concludes_goes_on_there(folder):
    begin(folder)

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


@dataclass
class Begun:
    """A run whose first half is done, which is put back as often as a test damages it."""

    folder: Path
    aside: Path
    result: Path
    expected: bytes

    def put_back(self):
        for path in self.folder.iterdir():
            if path.name != "in.npy":
                remove(path)
        for path in self.aside.iterdir():
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, self.folder / path.name)

    @property
    def hidden(self):
        return self.folder / f".{self.result.name}.partial"

    @property
    def ledger(self):
        return self.folder / f".{self.result.name}.blocks"

    def go_on(self, **options):
        return go_on(self.folder, name=self.result.name, **options).summary.n_redone


def begun_in(folder, name):
    blurred(folder, scene(100, 90)[None], KERNEL, "unknown")
    result = folder / name
    planned(folder, KERNEL, name=name).finish(SerialScheduler(), describe)
    expected = content_of(result)
    for path in result, result.with_name(f"{name}.json"):
        remove(path)
    begin(folder, name=name)
    aside = folder.with_name(f"{folder.name}-aside")
    shutil.copytree(folder, aside)
    (aside / "in.npy").unlink()
    return Begun(folder, aside, result, expected)


@pytest.fixture(scope="module")
def npy_begun(tmp_path_factory):
    return begun_in(tmp_path_factory.mktemp("npy"), "out.npy")


@pytest.fixture
def begun(npy_begun):
    npy_begun.put_back()
    return npy_begun


def flipped(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def in_place_of(make):
    """Put something else where a file is, which has its content if it is a file."""

    def damage(path, aside):
        path.rename(aside)
        make(path, aside)

    return damage


DAMAGES = {
    "truncated": (lambda path, aside: os.truncate(path, 20_000), 4),
    "emptied": (lambda path, aside: path.write_bytes(b""), 4),
    "replaced": (lambda path, aside: path.write_bytes(path.read_bytes()[:128].ljust(36128, b"\0")), 4),
    "one bit of a block": (lambda path, aside: flipped(path, -1), 3),
    "gone": (lambda path, aside: path.unlink(), 4),
    "symbolic link": (in_place_of(Path.symlink_to), 4),
    "hard link": (in_place_of(Path.hardlink_to), 4),
    "dangling link": (lambda path, aside: path.unlink() or path.symlink_to(aside), 4),
    "pipe": (lambda path, aside: path.unlink() or os.mkfifo(path), 4),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_blocks_that_the_file_does_not_hold_any_more_are_restored_again(begun, damage, tmp_path):
    change, n_redone = DAMAGES[damage]
    aside = tmp_path / "somebody's"
    before = begun.hidden.read_bytes()
    change(begun.hidden, aside)
    assert begun.go_on() == n_redone
    assert content_of(begun.result) == begun.expected
    assert not aside.exists() or aside.read_bytes() == before


def test_a_job_that_finds_the_blocks_of_another_lost_does_not_finish(begun):
    begun.hidden.write_bytes(b"")
    other = planned(begun.folder, KERNEL, resume=True).finish(SerialScheduler(), describe, share=JobShare(2, 2))
    assert other.summary is None
    assert not begun.result.exists()
    assert begun.go_on() == 2
    assert content_of(begun.result) == begun.expected


def test_a_link_in_place_of_the_record_is_replaced_and_its_file_kept(begun, tmp_path):
    (tmp_path / "mine").write_text("precious")
    (begun.folder / "out.npy.json").symlink_to(tmp_path / "mine")
    begun.go_on()
    assert (tmp_path / "mine").read_text() == "precious"
    assert content_of(begun.result) == begun.expected


def test_an_input_that_was_replaced_but_kept_size_and_time_is_noticed(begun):
    path, before = begun.folder / "in.npy", (begun.folder / "in.npy").read_bytes()
    found = path.stat()
    np.save(path, np.load(path)[:, ::-1])
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    try:
        with pytest.raises(UsageError, match=r"in\.npy' has changed since the run for '.*out\.npy' began"):
            begun.go_on()
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_kernel_of_the_same_taps_in_another_shape_is_another_one(begun):
    with pytest.raises(UsageError, match="another input, kernel or settings"):
        planned(begun.folder, KERNEL.reshape(121, 1), resume=True)


def plan_of(begun):
    return begun.ledger / "plan.json"


def lines_of(begun):
    return next(begun.ledger.glob("done-*.jsonl"))


@pytest.mark.parametrize("change", [("0.01", "0.02"), ('"n_threads": 1', '"n_threads": 1000000'), ("[1, 50", "[1, 60")])
def test_a_plan_that_was_changed_is_refused(begun, change):
    text = plan_of(begun).read_text()
    assert change[0] in text
    plan_of(begun).write_text(text.replace(*change, 1))
    with pytest.raises(FileAccessError, match=r"plan\.json' of an earlier run with 2 finished blocks cannot be read"):
        begun.go_on()


@pytest.mark.parametrize("make", ["mkfifo", "mkdir"])
@pytest.mark.parametrize("file_of", [plan_of, lines_of], ids=["plan", "lines"])
def test_a_pipe_or_a_folder_in_place_of_notes_is_not_read(begun, make, file_of):
    path = file_of(begun)
    path.unlink()
    getattr(os, make)(path if file_of is plan_of else path.with_name("done-other-1.jsonl"))
    if file_of is lines_of:
        assert begun.go_on() == 4
        assert content_of(begun.result) == begun.expected
    else:
        with pytest.raises(FileAccessError, match="force=True starts over"):
            begun.go_on()


def test_a_link_in_place_of_the_notes_is_not_followed(begun, tmp_path):
    begun.ledger.rename(tmp_path / "notes")
    begun.ledger.symlink_to(tmp_path / "notes")
    (tmp_path / "notes" / "finishing").write_text("precious")
    with pytest.raises(FileAccessError, match="force=True starts over"):
        begun.go_on()
    begun.go_on(force=True)
    assert content_of(begun.result) == begun.expected
    assert (tmp_path / "notes" / "finishing").read_text() == "precious"


class Ended(BaseException):
    """Simulate SIGKILL: once it was raised, nothing changes the disk any more, whatever cleans up."""


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
        with contextlib.suppress(BlocksCompleteError):
            planned(folder, KERNEL, predict=True, resume=True, **files).finish(SerialScheduler(), describe)
        assert [content_of(path) for path in outputs] == expected, n_steps
        left = [name for name in names_in(folder) if not name.startswith(".deconv-")]  # such a file may stay
        assert left == there, n_steps
    assert n_steps > 20


def content_of(path):
    return read_image(path).values.numpy().tobytes()
