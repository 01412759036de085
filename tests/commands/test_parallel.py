"""Jobs one by one and side by side: what is done at once, how much of it, and whose an error is."""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from rich.console import Console

from deconv_cli.commands.parallel import Job, JobResult, LoadedFile, SharedCores, one_by_one, side_by_side
from deconv_cli.commands.progress import PieceProgress, WorkProgress, format_duration
from deconv_cli.errors import MalformedInputError

MODES = [one_by_one, side_by_side]


def make_jobs(n):
    return [
        Job(Path(f"{number}.tif"), Path(f"out/{number}.tif"), number=number, n_jobs=n) for number in range(1, n + 1)
    ]


def outcome(job):
    return JobResult(job, {"number": job.number})


def run(mode, jobs, read=lambda job: job, process=lambda job, source, progress: outcome(job), **shared):
    """Read pictures of 100 samples, as far as the cores look at them."""
    picture = SimpleNamespace(values=torch.empty(100, device="meta"))
    if mode is side_by_side:
        shared.setdefault("cores", SharedCores(len(jobs), 2**30))
    progress_of = shared.pop("progress_of", lambda job: None)
    return mode(jobs, lambda job: None if read(job) is None else LoadedFile(picture), process, progress_of, **shared)


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", MODES)
def test_every_job_ends_once_and_in_order(mode):
    seen = []

    def process(job, source, progress):
        seen.append(job.number)
        time.sleep(0.002 * (job.number % 3))  # so that some are done before earlier ones
        return outcome(job)

    done = list(run(mode, make_jobs(9), process=process))
    assert [one.record["number"] for one in done] == sorted(seen) == list(range(1, 10))
    assert all(one.seconds >= 0 for one in done)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["read", "process"])
def test_an_error_is_that_of_its_job_and_the_others_go_on(mode, stage):
    def fails(at, job):
        if at == stage and job.number == 3:
            raise MalformedInputError("damaged")
        return job

    def process(job, source, progress):
        return outcome(fails("process", job))

    done = list(run(mode, make_jobs(6), lambda job: fails("read", job), process))
    assert [one.job.number for one in done] == [1, 2, 3, 4, 5, 6]
    assert [one.job.number for one in done if one.error is not None] == [3]
    assert [one.job.number for one in done if one.record is not None] == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("mode", MODES)
def test_what_needs_nothing_done_ends_without_record_and_error(mode):
    done = list(run(mode, make_jobs(3), read=lambda job: None if job.number == 2 else job))
    assert [(one.record is None, one.error is None) for one in done] == [(False, True), (True, True), (False, True)]


@pytest.mark.usefixtures("two_cores")
def test_a_file_a_core_is_worked_on_at_once_and_one_more():
    meeting = threading.Barrier(3, timeout=120)

    def process(job, source, progress):
        meeting.wait()
        assert torch.get_num_threads() == 1
        return outcome(job)

    assert [one.error for one in run(side_by_side, make_jobs(6), process=process)] == [None] * 6


@pytest.mark.usefixtures("two_cores")
def test_threads_that_are_started_afterwards_have_all_cores():
    assert len(list(run(side_by_side, make_jobs(4)))) == 4
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(("n_bytes", "at_most"), [(2**30, 3), (250 * 2**10, 1), (1, 1)])
def test_as_many_are_at_hand_as_fit_the_memory(n_bytes, at_most):
    """Of files of 100 samples, none of which a solver takes more than a kibibyte for."""
    at_hand, most, threads = 0, 0, set()
    lock = threading.Lock()

    def process(job, source, progress):
        nonlocal at_hand, most
        with lock:
            at_hand += 1
            most = max(most, at_hand)
        threads.add(torch.get_num_threads())

        time.sleep(0.002)
        with lock:
            at_hand -= 1
        return outcome(job)

    jobs = make_jobs(40)
    assert len(list(run(side_by_side, jobs, process=process, cores=SharedCores(len(jobs), n_bytes)))) == 40
    assert most <= at_most
    assert threads == ({1} if at_most == 3 else {2})


def test_a_large_file_is_alone_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("deconv_cli.commands.parallel.LARGE_FILE_BYTES", 100)
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
        time.sleep(0.005)
        in_memory.remove(job.number)
        return outcome(job)

    assert [one.error for one in run(side_by_side, jobs, read, process)] == [None] * 7


def test_results_that_wait_hold_no_image():
    done = list(run(side_by_side, make_jobs(2), process=lambda job, source, progress: outcome(job)))
    assert done[0].print_summary is done[1].print_summary


@pytest.mark.usefixtures("two_cores")
def test_an_error_that_waits_holds_no_image():
    held = []

    def process(job, source, progress):
        image = torch.zeros(3)
        held.append(weakref.ref(image))
        raise MalformedInputError("none")

    done = list(run(side_by_side, make_jobs(1), process=process))
    assert str(done[0].error) == "none"
    assert held[0]() is None


def test_a_run_that_is_interrupted_writes_what_was_computed_and_ends_what_goes_on():
    """When the first file is done, the second iterates for ever and the third is being written."""
    begun, written, writes, iterates = [], [], threading.Event(), threading.Event()
    cores = SharedCores(9, 2**30)

    def process(job, source, progress):
        begun.append(job.number)
        while job.number != 1 and job.number != 3:
            iterates.set()
            progress(1, 1.0)
            time.sleep(0.001)  # so that the others have the processor
        if job.number == 3:
            writes.set()
        time.sleep(0.5)  # all files are handed out before the first is done
        written.append(job.number)
        return outcome(job)

    def progress_of(job):
        return WorkProgress(is_silent=True, ends=cores.is_closed)

    ends = run(side_by_side, make_jobs(9), process=process, cores=cores, progress_of=progress_of)
    assert next(ends).job.number == 1
    assert writes.wait(120)
    assert iterates.wait(120)
    ends.close()
    assert written == [1, 3]
    assert 9 not in begun


def run_of_progress(progress, certificates):
    for iteration, certificate in enumerate(certificates, start=1):
        progress(iteration, certificate)


def test_a_verbose_line_tells_file_and_step(clock, capsys):
    progress = WorkProgress("file 2 of 7", verbose=True, clock=clock)
    progress.begin("restoring", goal=1e-6, limit=50)
    run_of_progress(progress, [1e-1, 1e-2, 1e-3])
    assert capsys.readouterr().err.splitlines() == [
        "file 2 of 7: restoring",
        "file 2 of 7: iteration 1: certificate 1.00e-01, goal 1e-06",
        "file 2 of 7: iteration 2: certificate 1.00e-02, goal 1e-06",
        "file 2 of 7: iteration 3: certificate 1.00e-03, goal 1e-06",
    ]
    progress.begin("restoring")  # in a fixed number of steps
    run_of_progress(progress, [1e-1])
    assert capsys.readouterr().err.splitlines()[1:] == ["file 2 of 7: step 1: change 1.00e-01"]


@pytest.mark.parametrize("options", [{"is_silent": True}, {"is_silent": True, "verbose": True}, {}])
def test_who_asks_for_silence_or_is_no_terminal_sees_nothing(clock, capsys, options):
    with WorkProgress(clock=clock, **options).shown() as progress:
        progress.begin("restoring")
        run_of_progress(progress, [1e-1])
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_step_under_way(clock, capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    with WorkProgress(clock=clock).shown() as progress:
        progress.begin("predicting the error")
    assert "predicting the error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (5969, "99 min"), (6000, "1.7 h")]
)
def test_times_are_rounded_to_what_is_of_use(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0.5, "4 of 10 files, about 3 s left"),
        (30.0, "4 of 10 files, about 3 min left"),
        (1800.0, "4 of 10 files, about 3.0 h left"),
    ],
)
def test_time_left(clock, seconds, line):
    progress = PieceProgress(10, clock=clock)
    assert progress.line() == "0 of 10 files"
    for _ in range(4):
        clock.now += seconds
        progress.advance()
    assert progress.line() == line


def test_the_time_left_follows_the_last_pieces(clock):
    progress = PieceProgress(1000, "block", clock=clock)
    for seconds in [100.0] * 10 + [1.0] * 200:
        clock.now += seconds
        progress.advance()
    assert progress.line() == "210 of 1000 blocks, about 13 min left"


def test_pieces_of_an_earlier_run_say_nothing_of_the_time_left(clock):
    progress = PieceProgress(10, "block", clock=clock)
    clock.now += 1e-3
    progress.reach(5, 10)
    assert progress.line() == "5 of 10 blocks"
    clock.now += 20.0
    progress.advance()
    assert progress.line() == "6 of 10 blocks, about 80 s left"


def test_a_log_has_a_line_a_minute(clock, capsys):
    progress = PieceProgress(100, clock=clock)
    with progress.shown():
        for _ in range(20):
            clock.now += 7.0
            progress.tell("restoring")
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # 140 seconds
    assert lines[1].startswith("17 of 100 files, about 10 min left")


def test_who_asks_for_silence_has_it(clock, capsys):
    progress = PieceProgress(3, is_silent=True, clock=clock)
    with progress.shown(), progress.paused():
        clock.now += 1000.0
        progress.advance()
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_step_of_the_file_at_hand(clock, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # for Rich, this is a terminal then
    progress = PieceProgress(2, clock=clock)
    with progress.shown():
        work = WorkProgress("file 1 of 2", show=progress.tell, clock=clock)
        work.begin("choosing λ")
        progress._status._live.refresh()
        with progress.paused():
            typer.echo("out/a.tif")
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out == "out/a.tif\n"
    assert "0 of 2 files: choosing λ" in captured.err
