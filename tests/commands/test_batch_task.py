"""Jobs in other processes: the data that are sent, and the cost of a process that dies."""

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from deconv_cli.commands.batch import Batch, BatchTask, done_by
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.manifest import BatchOptions
from deconv_cli.commands.option_groups import FileOptions, PrintOptions, WorkOptions
from deconv_cli.commands.parallel import Job, JobResult, LoadedFile, Work
from deconv_cli.errors import DeconvError, MalformedInputError, WorkerError
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.schedulers.scheduler import attempt


@dataclass(frozen=True)
class Numbering(Work):
    """Reads the number in a file; a file that holds something else is refused, and some kill whoever reads them."""

    device_type = "cpu"

    def read(self, path):
        text = path.read_text()
        if text == "deadly":
            raise WorkerError("the process died")
        if not text.isdecimal():
            raise MalformedInputError(f"'{path}' holds no number.")
        return LoadedFile(int(text))

    def open(self):
        opened = Path("opened")
        opened.write_text((opened.read_text(encoding="utf-8") if opened.exists() else "") + "x", encoding="utf-8")
        return lambda job, source, progress: JobResult(job, {"number": source.image}, lambda: source, doubts=("doubt",))


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, text in enumerate(["1", "2", "bad", "deadly", "5"], start=1):
        Path(f"{number}.txt").write_text(text, encoding="utf-8")
    return [Job(Path(f"{number}.txt"), Path("out"), number=number, n_jobs=5) for number in range(1, 6)]


class Planning(Numbering):
    """Does a part of its only job, whose record is the plan."""

    def open(self):
        return lambda job, source, progress: JobResult(job, {"command": "invert"}, is_partial=True)


def test_a_job_that_others_complete_says_nothing_if_quiet(jobs, capsys):
    batch = Batch("invert", FileOptions(), PrintOptions(quiet=True), BatchOptions(), WorkOptions(), None)
    batch.run([replace(jobs[0], n_jobs=1)], Planning())
    assert capsys.readouterr() == ("", "")


def test_each_process_prepares_once_and_sends_no_image(jobs):
    task = BatchTask(Numbering(), jobs)
    sent = pickle.loads(pickle.dumps(task))
    done = [pickle.loads(pickle.dumps(sent(number))) for number in (1, 2, 5)]
    assert Path("opened").read_text(encoding="utf-8") == "x"
    assert [(one.job.number, one.record, one.doubts) for one in done] == [
        (number, {"number": number}, ("doubt",)) for number in (1, 2, 5)
    ]
    assert done[0].print_summary() is None  # the image is gone
    assert pickle.loads(pickle.dumps(sent))._process is None


def test_a_process_that_was_started_elsewhere_finds_the_files(jobs, tmp_path, monkeypatch):
    task = BatchTask(Numbering(), jobs)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert task(2).record == {"number": 2}
    assert Path.cwd() == tmp_path / "elsewhere"


def test_a_failure_and_a_killed_worker_cost_one_file_each(jobs):
    begun = []
    done = list(done_by(SerialScheduler(), Numbering(), jobs, (begun.append(job.number) or job for job in jobs)))
    assert begun == [one.job.number for one in done] == [1, 2, 3, 4, 5]
    assert [type(one.error) for one in done] == [type(None), type(None), MalformedInputError, WorkerError, type(None)]
    assert all(isinstance(one.error, DeconvError | None) for one in done)


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
    words = ["forward", frames, "-k", gentle, "-o", out, "--jobs", "1", "--manifest", tmp_path / "run.jsonl"]
    done = deconv(*words, expect=ExitCode.UNTRUSTWORTHY)
    assert len(done.errors) == 1
    assert f"output '{out / '2.npy'}' exists already" in done.errors[0]
    deconv(*words, "--resume", expect=ExitCode.UNTRUSTWORTHY)
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


def test_verbose_is_refused_with_workers(refuses, frames, gentle, tmp_path):
    words = ["forward", frames, "-k", gentle, "-o", tmp_path / "out", "--jobs", "2", "--verbose"]
    refuses(*words, code=ExitCode.USAGE, says=["--verbose", "--jobs"])


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
    assert [line["status"] for line in lines] == ["done", "failed", "failed", "done"]
    (frames / "2.npy").unlink()
    (frames / "3.npy").unlink()
    deconv(*words, "-o", tmp_path / "alone")
    for name in ("1.npy", "4.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
