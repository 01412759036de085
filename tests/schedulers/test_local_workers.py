"""Workers of this machine: several threads, or several processes, some of which die; and who works by the settings."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import torch
from piece_tasks import DieAt, Fail, WriteUnit, a_file, check_failures, divide, exit_at_seven

import deconv_cli
from deconv_cli.errors import UsageError, WorkerError
from deconv_cli.schedulers.local_workers import ProcessPool, SerialScheduler, ThreadPool
from deconv_cli.schedulers.scheduler import JobShare, WorkSettings, start_scheduler

N_PIECES = 9


@pytest.fixture(scope="module")
def pool():
    with ProcessPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = a_file(tmp_path_factory.mktemp("serial"))
    found = list(SerialScheduler().run(WriteUnit(path), range(N_PIECES)))
    assert [(one.number, one.result, one.error) for one in found] == [(n, 10 * n, None) for n in range(N_PIECES)]
    return path.read_bytes()


def test_the_same_bytes_though_processes_are_killed(pool, expected, tmp_path):
    path = a_file(tmp_path)
    found = list(pool.run(DieAt(WriteUnit(path), {0: 2, 5: 1}), range(N_PIECES)))
    assert sorted((one.number, one.result) for one in found) == [(n, 10 * n) for n in range(N_PIECES)]
    assert path.read_bytes() == expected
    assert sorted(marker.name for marker in tmp_path.glob("?-?")) == ["0-0", "0-1", "5-0"]


def test_a_piece_that_ends_every_process_costs_only_itself(pool, tmp_path):
    path = a_file(tmp_path)
    found = {one.number: one for one in pool.run(DieAt(WriteUnit(path), {1: 9}), range(3))}
    assert (found[0].result, found[2].result) == (0, 20)
    assert isinstance(found[1].error, WorkerError)
    assert "piece 1 was ended by signal 9, 3 times" in str(found[1].error)
    assert len(list(tmp_path.glob("1-?"))) == 3


@pytest.mark.parametrize("scheduler", ["pool", "serial", "threads"])
def test_errors_come_with_their_pieces_and_those_of_files_after_further_trials(scheduler, pool, tmp_path):
    chosen = {"pool": pool, "serial": SerialScheduler(), "threads": ThreadPool(2)}[scheduler]
    check_failures({one.number: one for one in chosen.run(Fail(tmp_path), range(5))})
    assert [len((tmp_path / str(n)).read_text()) for n in range(5)] == [1, 1, 3, 3, 1]


def test_a_bug_in_a_task_tells_where_it_is(pool):
    (one,) = pool.run(divide, [0])
    assert isinstance(one.error, ZeroDivisionError)
    assert "in divide" in "".join(one.error.__notes__)


def test_few_pieces_are_under_way_and_those_that_nobody_waits_for_are_dropped(pool):
    given = count()
    run = pool.run(abs, given)
    assert next(run).number in (0, 1)
    assert next(given) <= 1 + 2 * pool.n_workers
    run.close()
    assert [one.result for one in pool.run(abs, [3])] == [3]


def test_a_process_that_gives_up_ends_the_run():
    with ProcessPool(2) as pool, pytest.raises(WorkerError, match="ended with exit code 7"):
        list(pool.run(exit_at_seven, [7]))


def test_each_process_has_a_gpu_to_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ProcessPool(2, "cuda").n_workers == 2
    with pytest.raises(UsageError, match="there are 3 processes and 2 GPUs"):
        ProcessPool(3, "cuda")


INTERRUPTED = """
import signal
import time
from deconv_cli.schedulers.local_workers import ProcessPool

def sleep(number):
    print(number, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests behind has it ignored
    try:
        with ProcessPool(2) as pool:
            list(pool.run(sleep, range(5)))
    except KeyboardInterrupt:
        print("ended")
"""


def started(folder, text):
    """Start a script that a signal to its group of processes can interrupt; it gets the folder as its argument."""
    script = folder / "script.py"
    script.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is a signal to a group of processes")
def test_an_interrupted_run_ends_all_of_its_processes_in_silence(tmp_path):
    with started(tmp_path, INTERRUPTED) as run:
        assert {run.stdout.readline(), run.stdout.readline()} == {"0\n", "1\n"}
        subprocess.os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        assert run.communicate(timeout=300) == ("ended\n", "")


WRITING = """
import signal
import sys
import time
from pathlib import Path
from deconv_cli.schedulers.local_workers import ProcessPool
from deconv_cli.schedulers.scheduler import announce_writing

def write(number):
    if number == 0:
        announce_writing()
    Path(sys.argv[1], str(number)).touch()
    time.sleep(3 if number == 0 else 600)
    return number

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ProcessPool(2) as pool:
            for finished in pool.run(write, range(5)):
                print(finished.result)
    except KeyboardInterrupt:
        print("ended")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is a signal to a group of processes")
def test_an_interrupted_run_waits_for_the_piece_that_is_being_written_and_for_no_other(tmp_path):
    with started(tmp_path, WRITING) as run:
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            time.sleep(0.05)
        subprocess.os.killpg(run.pid, signal.SIGINT)
        assert run.communicate(timeout=300) == ("0\nended\n", "")


def test_as_many_pieces_as_there_are_threads_go_on_at_once_with_a_core_each():
    all_here, n_cores = threading.Barrier(3, timeout=120), torch.get_num_threads()

    def meet(number):
        all_here.wait()
        return torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        with start_scheduler(WorkSettings(threads=3)) as scheduler:
            assert type(scheduler) is ThreadPool
            assert scheduler.memory_of_piece(64, 80) == 21
            assert sorted((one.number, one.result) for one in scheduler.run(meet, range(6))) == [
                (n, 1) for n in range(6)
            ]
        with ThreadPoolExecutor(1) as pool:  # threads that begin later have all cores
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_cores)


def test_an_interrupted_run_begins_nothing_more_and_yields_what_was_finished():
    """When the first piece is done, the second continues until the pool ends, and the third is nearly done."""
    given, writes, pool = count(1), threading.Event(), ThreadPool(3)

    def work(number):
        while number == 2 and not pool.is_ending:
            time.sleep(0.001)
        if number == 2:
            raise KeyboardInterrupt
        if number == 3:
            writes.set()
            while not pool.is_ending:
                time.sleep(0.001)
        return number

    run = pool.run(work, given)
    assert next(run).number == 1
    assert writes.wait(120)
    done = [run.throw(KeyboardInterrupt).number]
    with pytest.raises(KeyboardInterrupt):
        done.extend(one.number for one in run)
    assert {1, 2} & set(done) == set()
    assert 3 in done
    assert next(given) <= 8


def test_this_process_works_alone_unless_told_otherwise():
    assert type(start_scheduler(WorkSettings())) is SerialScheduler
    assert type(start_scheduler(WorkSettings(jobs=1))) is SerialScheduler
    pool = start_scheduler(WorkSettings(jobs=3))
    assert type(pool) is ProcessPool
    assert pool.n_workers == 3
    assert [pool.memory_of_piece(given, 81) for given in (64, None)] == [21, 27]
    assert SerialScheduler().memory_of_piece(64, 81) == 64


@pytest.mark.parametrize(
    "given",
    [{"jobs": 1, "scheduler": "a"}, {"jobs": 2, "threads": 2}],
)
def test_two_that_would_do_the_work_are_refused(given):
    with pytest.raises(UsageError, match=" and ".join(f"{name}={value}" for name, value in given.items())):
        WorkSettings(**given)


@pytest.mark.parametrize("name", ["jobs", "threads"])
def test_no_workers_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} must be a positive whole number"):
        WorkSettings(**{name: 0})


def test_a_scheduler_of_the_callers_is_taken():
    class Backwards(SerialScheduler):
        """Works from the last number to the first."""

        @classmethod
        def covers(cls, settings):
            return settings.scheduler == "backwards"

        def run(self, task, numbers):
            return super().run(task, reversed(numbers))

    deconv_cli.SCHEDULERS.register("backwards", Backwards)
    try:
        with start_scheduler(WorkSettings(scheduler="backwards")) as scheduler:
            assert [one.result for one in scheduler.run(abs, range(3))] == [2, 1, 0]
    finally:
        deconv_cli.SCHEDULERS.unregister("backwards")


@pytest.mark.parametrize(("n_pieces", "n_jobs"), [(0, 1), (1, 3), (10, 3), (12, 4), (5, 5)])
def test_the_jobs_of_an_array_do_each_piece_once(n_pieces, n_jobs):
    shares = [JobShare(job, n_jobs).of(range(n_pieces)) for job in range(1, n_jobs + 1)]
    assert [number for share in shares for number in share] == list(range(n_pieces))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_share_of_a_job_is_read_and_written():
    assert JobShare.parse(" 3/16") == JobShare(3, 16)
    assert str(JobShare(3, 16)) == "3/16"


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "a/4", "1/4/4", "-1/4", "1.0/4"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UsageError, match="number the jobs of an array from 1"):
        JobShare.parse(text)
