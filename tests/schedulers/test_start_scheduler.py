"""Who does the work, by what was said of it."""

import pytest

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.schedulers.local_workers import ProcessPool, SerialScheduler
from deconv_cli.schedulers.scheduler import JobShare, WorkSettings, start_scheduler


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
