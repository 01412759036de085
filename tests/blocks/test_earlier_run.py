"""A run that is gone on with knows what earlier ones left: a whole result, parts of it, or what is none of its own."""

import pytest
from block_cases import blurred, describe, planned, scene

import deconv_cli
from deconv_cli.blocks.earlier_run import BlocksCompleteError
from deconv_cli.errors import FileAccessError, UsageError
from deconv_cli.schedulers.job_array import JobShare
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


def test_what_is_begun_with_other_settings_is_forgotten_by_force_alone(folder):
    ledger = begin(folder, boundary="zero")
    n_done = len(ledger.results())
    with pytest.raises(UsageError, match=r"another input, kernel or settings.*give force=True to forget what it did"):
        planned(folder, KERNEL, resume=True)
    assert len(ledger.results()) == n_done > 0
    begin(folder, n_jobs=4, force=True)
    assert len(ledger.results()) == 1
    assert go_on(folder).summary.n_redone == 3
    assert names_in(folder) == ["in.npy", "out.npy", "out.npy.json"]


def test_blocks_whose_file_is_gone_are_none_and_a_run_that_is_ended_as_it_concludes_goes_on_there(folder):
    begin(folder)
    hidden, aside = folder / ".out.npy.partial", folder / "aside"
    hidden.rename(aside)
    with pytest.raises(FileAccessError, match="were written into is gone, and they with it; force=True begins anew"):
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
