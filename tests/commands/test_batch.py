"""A batch: what is done side by side, in which order it is printed, and jobs that are done twice."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deconv_cli.blocks.block_problem import MAX_BYTES_A_SAMPLE
from deconv_cli.commands import batch
from deconv_cli.commands.batch import Batch
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.kernel_request import KernelRequest
from deconv_cli.commands.option_groups import BatchOptions, FileOptions, KernelOptions, PrintOptions, WorkOptions
from deconv_cli.commands.work import Job, JobResult, Work
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.schedulers.scheduler import attempt
from deconv_cli.vocabulary import DeviceChoice


@dataclass(frozen=True, kw_only=True)
class Counting(Work):
    """Reads pictures of as many samples as the files have bytes, and notes how many are in work at once."""

    command = "forward"
    files: FileOptions = FileOptions()  # noqa: RUF009
    kernel: KernelRequest = KernelRequest([], KernelOptions())  # noqa: RUF009
    device: DeviceChoice = DeviceChoice.CPU

    def read(self, job):
        return SimpleNamespace(values=torch.empty(job.source.stat().st_size, device="meta"))

    def memory(self):
        return 3 * 100 * MAX_BYTES_A_SAMPLE

    def open(self):
        opened = Path("opened")
        opened.write_text((opened.read_text(encoding="utf-8") if opened.exists() else "") + "x", encoding="utf-8")
        in_work, seen = [], []

        def process(job, source, progress):
            in_work.append(job.number)
            time.sleep(0.02 * (4 - job.number % 3))
            seen.append((len(in_work), torch.get_num_threads()))
            in_work.remove(job.number)
            if job.number == 2:
                raise ZeroDivisionError
            record = {"command": "forward", "output": {"path": str(job.target)}, "seen": seen[-1]}
            return JobResult(record | {"doubts": ["doubt"]}, lambda: source)

        return process


def make_jobs(sizes):
    for number, size in enumerate(sizes, start=1):
        Path(f"{number}.txt").write_bytes(bytes(size))
    return [
        Job(Path(f"{number}.txt"), Path(f"out{number}"), number=number, n_jobs=len(sizes))
        for number in range(1, len(sizes) + 1)
    ]


@pytest.fixture(autouse=True)
def _two_cores_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run_batch(work, jobs, **printed):
    Batch("forward", FileOptions(), PrintOptions(**printed), BatchOptions(), WorkOptions()).run(jobs, work)


def test_small_files_are_done_side_by_side_and_the_others_alone_with_all_cores(monkeypatch, capsys):
    monkeypatch.setattr("deconv_cli.commands.work.LARGE_FILE_BYTES", 1000)
    jobs = make_jobs([10, 10, 101, 10, 2000, 10, 100])  # the third is too large for its share of the memory
    with pytest.raises(batch.typer.Exit):
        run_batch(Counting(), jobs, as_json=True)
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    seen = {int(result["output"]["path"][3:]): tuple(result["seen"]) for result in document["results"]}
    assert list(seen) == [1, 3, 4, 5, 6, 7]
    assert seen[3] == seen[5] == (1, 2)
    assert {threads for number, (_, threads) in seen.items() if number not in (3, 5)} == {1}
    assert max(n for n, _ in seen.values()) in (2, 3)
    assert [failure["path"] for failure in document["failed"]] == ["2.txt"]
    assert "in process" in captured.err  # the traceback
    assert torch.get_num_threads() == 2
    with pytest.raises(batch.typer.Exit):
        run_batch(Counting(), jobs)
    assert capsys.readouterr().out.split() == [f"out{number}" for number in (1, 4, 6, 7, 3, 5)]


def test_one_file_is_read_at_a_time(capsys):
    held, seen = [], []

    class Reading(Counting):
        def read(self, job):
            held.append(job)
            time.sleep(0.05)
            seen.append(len(held))
            held.remove(job)
            return super().read(job)

    with pytest.raises(batch.typer.Exit):
        run_batch(Reading(), make_jobs([10] * 4), quiet=True)
    assert seen == [1] * 4


def test_a_job_that_others_complete_says_nothing_if_quiet(capsys):
    class Planning(Counting):
        def open(self):
            return lambda job, source, progress: JobResult({"command": "invert"}, is_partial=True)

    jobs = make_jobs([1])
    jobs[0].source.write_bytes(b"BM")  # as a picture begins
    run_batch(Planning(), jobs, quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 5):
        np.save(folder / f"{number}.npy", np.full((9, 8), number, dtype=np.float32))
    return folder


@pytest.fixture
def each_twice(monkeypatch):
    """Do each piece twice, as if the first worker died with its result."""

    def run(self, task, numbers):
        for number in numbers:
            attempt(task, number)
            yield attempt(task, number)

    monkeypatch.setattr(SerialScheduler, "run", run)


@pytest.mark.usefixtures("each_twice")
def test_a_job_that_is_done_again_finds_its_own_output_and_no_other(deconv, frames, gentle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "2.npy").write_bytes(b"precious")
    words = ["forward", frames, "-k", gentle, "-o", out, "--jobs", "1", "--json"]
    done = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert len(done.errors) == 1
    assert f"output '{out / '2.npy'}' exists already" in done.errors[0]
    assert deconv(*words, "--skip-existing").report["skipped"] == [str(frames / f"{n}.npy") for n in range(1, 5)]
    assert (out / "2.npy").read_bytes() == b"precious"
    assert deconv(*words, "--force").errors == []


@pytest.mark.usefixtures("each_twice")
def test_a_worker_forgets_no_blocks_of_an_earlier_run_unasked(deconv, frames, gentle, tmp_path):
    ledger = tmp_path / "out" / ".2.npy.blocks"
    ledger.mkdir(parents=True)
    words = ["invert", frames, "-k", gentle, "-o", tmp_path / "out", "--jobs", "1", "--block-size", "4"]
    done = deconv(*words, expect=ExitCode.USAGE)  # the frames are too small to be cut
    assert f"it left '{ledger}'" in done.errors[-1]
    assert ledger.exists()
    for option in ("--skip-existing", "--force"):  # the blocks would be continued, or forgotten
        assert "it left" not in deconv(*words, option, expect=ExitCode.USAGE).stderr


def test_a_worker_continues_no_blocks_of_another_run_and_keeps_them(deconv, frames, gentle, tmp_path):
    np.save(frames / "2.npy", np.random.default_rng(0).random((60, 50), dtype=np.float32))
    for number in (1, 3):  # two are left, so that workers do them
        (tmp_path / "out" / f"{number}.npy").parent.mkdir(exist_ok=True)
        shutil.copy(frames / "1.npy", tmp_path / "out" / f"{number}.npy")
    words = ["-k", "box:3", "--boundary", "zero", "--noise", "white", "--block-size", "40", "--lambda"]
    deconv("invert", frames / "2.npy", *words, "1", "-o", tmp_path / "out" / "2.npy", "--block-range", "1/2")
    ledger = tmp_path / "out" / ".2.npy.blocks"
    before = {path.name: path.read_bytes() for path in ledger.iterdir()}
    folder = ["invert", frames, *words, "2", "-o", tmp_path / "out", "--jobs", "1"]
    done = deconv(*folder, "--skip-existing", expect=ExitCode.UNTRUSTWORTHY)
    assert ["cannot be resumed" in error for error in done.errors] == [True]
    assert {path.name: path.read_bytes() for path in ledger.iterdir()} == before


def test_verbose_is_refused_with_workers(refuses, frames, gentle, tmp_path):
    manifest = tmp_path / "log.jsonl"
    manifest.write_text("of an earlier run")
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--jobs", "2", "--manifest", manifest, "--force"]
    refuses(*words, "--verbose", code=ExitCode.USAGE, says=["--verbose", "--jobs"])


@pytest.mark.exhaustive  # processes load torch
def test_processes_give_the_same_bytes_and_one_that_dies_costs_one_file(deconv, frames, gentle, tmp_path):
    (frames / "3.npy").write_bytes((frames / "3.npy").read_bytes()[:-7])
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "def times(x, w):\n"
        "    if float(x.max()) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return x * w\n"
    )
    words = ["forward", frames, "-k", gentle, "--tap", f"{tmp_path / 'deadly.py'}:times", "--json"]
    manifest = ["--manifest", tmp_path / "run.jsonl"]
    done = deconv(*words, "-o", tmp_path / "out", *manifest, "--jobs", "2", expect=ExitCode.UNTRUSTWORTHY)
    assert [failure["path"] for failure in done.report["failed"]] == [str(frames / f"{n}.npy") for n in (2, 3)]
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: line["input"])
    assert [line["status"] for line in lines] == ["done", "failed", "failed", "done"]
    (frames / "2.npy").unlink()
    (frames / "3.npy").unlink()
    deconv(*words, "-o", tmp_path / "alone")
    for name in ("1.npy", "4.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
