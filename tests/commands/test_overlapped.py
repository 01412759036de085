"""Reading ahead and writing behind: what overlaps, how far, and whose an error is."""

import threading
import time
from pathlib import Path

import pytest

from deconv_cli.commands.job import Job, Outcome, Source
from deconv_cli.commands.overlapped import N_AHEAD, N_BEHIND, one_by_one, overlapped
from deconv_cli.errors import MalformedInputError

MODES = [one_by_one, overlapped]


def make_jobs(n):
    return [
        Job(Path(f"{number}.tif"), Path(f"out/{number}.tif"), number=number, n_jobs=n) for number in range(1, n + 1)
    ]


def outcome(job):
    return Outcome({"number": job.number}, lambda: None, (), lambda: None)


def run(mode, jobs, read=lambda job: job.number, process=lambda job, source, progress: lambda: outcome(job)):
    return mode(jobs, lambda job: None if (found := read(job)) is None else Source(found), process, lambda job: None)


@pytest.mark.parametrize("mode", MODES)
def test_every_job_ends_once_and_in_order(mode):
    seen = []

    def process(job, source, progress):
        seen.append(source.image)
        return lambda: outcome(job)

    done = list(run(mode, make_jobs(9), process=process))
    assert [one.outcome.record["number"] for one in done] == seen == list(range(1, 10))
    assert all(one.seconds >= 0 for one in done)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["read", "process", "finish"])
def test_an_error_is_that_of_its_job_and_the_others_go_on(mode, stage):
    def fails(at, job):
        if at == stage and job.number == 3:
            raise MalformedInputError("damaged")
        return job

    def process(job, source, progress):
        fails("process", job)
        return lambda: outcome(fails("finish", job))

    done = list(run(mode, make_jobs(6), lambda job: fails("read", job), process))
    assert [one.job.number for one in done] == [1, 2, 3, 4, 5, 6]
    assert [one.job.number for one in done if one.error is not None] == [3]
    assert [one.job.number for one in done if one.outcome is not None] == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("mode", MODES)
def test_what_needs_nothing_done_ends_without_outcome_and_error(mode):
    done = list(run(mode, make_jobs(3), read=lambda job: None if job.number == 2 else job))
    assert [(one.outcome is None, one.error is None) for one in done] == [(False, True), (True, True), (False, True)]


def test_the_next_are_read_and_the_last_written_meanwhile():
    jobs, next_read, first_written = make_jobs(3), threading.Event(), threading.Event()

    def read(job):
        if job.number == 2:
            next_read.set()
        return job

    def process(job, source, progress):
        if job.number == 1:
            assert next_read.wait(10)
        else:
            first_written.set()  # which is waited for by what writes the first
        return lambda: outcome(job) if first_written.wait(10) else None

    assert [one.error for one in run(overlapped, jobs, read, process)] == [None] * 3


def test_few_are_in_memory_at_once():
    n_read = n_written = most = 0
    lock = threading.Lock()

    def read(job):
        nonlocal n_read, most
        with lock:
            n_read += 1
            most = max(most, n_read - n_written)
        return job

    def process(job, source, progress):
        def finish():
            nonlocal n_written
            time.sleep(0.002)  # slower than the rest
            with lock:
                n_written += 1
            return outcome(job)

        return finish

    assert len(list(run(overlapped, make_jobs(60), read, process))) == 60
    assert most <= N_AHEAD + N_BEHIND + 3  # the one at hand, one that begins and one that ends


def test_a_large_file_is_alone_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("deconv_cli.commands.large_files.LARGE_FILE_BYTES", 100)
    jobs, in_memory = [], set()
    for number, size in enumerate([10, 10, 200, 10, 200, 200, 10], start=1):
        (tmp_path / f"{number}.tif").write_bytes(bytes(size))
        jobs.append(Job(tmp_path / f"{number}.tif", tmp_path / f"{number}.out", number=number))
    large = {job.number for job in jobs if job.source.stat().st_size > 100}

    def read(job):
        in_memory.add(job.number)
        assert not in_memory & large or len(in_memory) == 1
        return job

    def process(job, source, progress):
        def finish():
            in_memory.remove(job.number)
            return outcome(job)

        return finish

    assert [one.error for one in run(overlapped, jobs, read, process)] == [None] * 7


def test_what_was_computed_is_written_where_the_run_is_interrupted():
    written = []

    def process(job, source, progress):
        if job.number == 3:
            raise KeyboardInterrupt

        def finish():
            time.sleep(0.05)  # so that the second still waits
            written.append(job.number)
            return outcome(job)

        return finish

    with pytest.raises(KeyboardInterrupt):
        list(run(overlapped, make_jobs(5), process=process))
    assert sorted(written) == [1, 2]
