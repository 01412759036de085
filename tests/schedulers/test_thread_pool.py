"""Several pieces at once in one process."""

import threading
from itertools import count

import pytest
from piece_tasks import Fail, check_failures

from deconv_cli.schedulers.local_workers import ThreadPool
from deconv_cli.schedulers.scheduler import WorkSettings, start_scheduler


def test_as_many_pieces_as_there_are_threads_go_on_at_once():
    all_here = threading.Barrier(3, timeout=120)

    def meet(number):
        all_here.wait()
        return number + 1

    with start_scheduler(WorkSettings(threads=3)) as scheduler:
        assert type(scheduler) is ThreadPool
        assert scheduler.memory_of_piece(64, 80) == 21
        assert sorted((one.number, one.result) for one in scheduler.run(meet, range(6))) == [
            (n, n + 1) for n in range(6)
        ]


def test_errors_come_with_their_pieces_and_those_of_files_after_further_trials(tmp_path):
    check_failures({one.number: one for one in ThreadPool(2).run(Fail(tmp_path), range(5))})
    assert [len((tmp_path / str(n)).read_text()) for n in range(5)] == [1, 1, 3, 3, 1]


def test_few_pieces_are_under_way_and_an_interrupted_run_waits_for_those_alone():
    given, done = count(), []
    run = ThreadPool(2).run(done.append, given)
    next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt)
    n_given = next(given)
    assert n_given <= 5
    assert len(done) <= n_given
