"""The workers of a running Dask cluster: real processes."""

import json
import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from itertools import count

import pytest
from piece_tasks import DieAt, Fail, WriteUnit, a_file, check_failures, folder_of, process_of, sleep_from_two

from deconv_cli.errors import UsageError, WorkerError
from deconv_cli.schedulers import dask_cluster
from deconv_cli.schedulers.dask_cluster import UNDER_WAY, DaskCluster
from deconv_cli.schedulers.local_workers import SerialScheduler
from deconv_cli.schedulers.scheduler import WorkSettings

distributed = pytest.importorskip("distributed")

N_PIECES = 9
WORKERS = {"a": {"memory_limit": 30}, "b": {"memory_limit": 40}, "unlimited": {"memory_limit": 0}}


@contextmanager
def running(n_workers):
    """Start a scheduler that gives up a piece at which one worker died, and connect to it."""
    with (
        distributed.LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            scheduler_kwargs={"allowed_failures": 0},
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as started,
        DaskCluster.open(WorkSettings(scheduler=started.scheduler_address)) as cluster,
    ):
        cluster.started = started
        yield cluster


@pytest.fixture(scope="module")
def cluster():
    with running(2) as cluster:
        yield cluster


def wait_for_workers(cluster):
    for _ in range(60):  # a test may have killed one, and Dask ends workers that start slowly
        if len(cluster._present()) == 2:
            break
        cluster.started.scale(2)
        time.sleep(1)


def test_the_same_bytes_as_one_process_though_a_worker_is_killed(cluster, tmp_path_factory):
    serial, killed = (a_file(tmp_path_factory.mktemp("dask")) for _ in range(2))
    list(SerialScheduler().run(WriteUnit(serial), range(N_PIECES)))
    found = list(cluster.run(DieAt(WriteUnit(killed), {4: 1}), range(N_PIECES)))
    assert sorted((one.number, one.result, one.error) for one in found) == [(n, 10 * n, None) for n in range(N_PIECES)]
    assert killed.read_bytes() == serial.read_bytes()
    assert killed.with_name("4-0").exists()


def test_results_that_are_lost_with_their_worker_are_made_again(cluster):
    run = cluster.run(process_of, range(6))
    first = next(run)
    time.sleep(1.5)  # the next ones are done, and still where they were made
    os.kill(first.result, signal.SIGKILL)
    time.sleep(0.2)
    assert sorted([first.number, *(one.number for one in run)]) == list(range(6))


def test_errors_come_with_their_pieces_and_those_of_files_after_further_trials(cluster, tmp_path):
    check_failures({one.number: one for one in cluster.run(Fail(tmp_path), range(5))})
    assert [len((tmp_path / str(n)).read_text()) for n in range(4)] == [1, 1, 3, 3]
    (one,) = cluster.run(Fail(tmp_path), [3])
    assert str(one.error).endswith("cannot be read; all workers must see the files under the same paths.")


def test_paths_are_told_from_the_folder_of_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [one.result for one in cluster.run(folder_of, [1])] == [str(tmp_path.resolve())]
    assert [one.result for one in cluster.run(abs, [-1])] == [1]


def test_all_workers_begin_at_once(cluster):
    wait_for_workers(cluster)
    process = {one.number: one.result for one in cluster.run(process_of, range(4))}
    assert process[0] == process[2] != process[1] == process[3]


def test_few_pieces_are_under_way(cluster):
    given = count()
    run = cluster.run(abs, given)
    assert next(run).error is None
    assert next(given) <= 1 + UNDER_WAY * cluster.n_workers
    run.close()
    assert [one.result for one in cluster.run(abs, [-3])] == [3]


def test_a_running_cluster_is_found_by_its_address_or_by_its_file(cluster, tmp_path, monkeypatch):
    address = cluster._client.scheduler.address
    by_file = tmp_path / "scheduler.json"
    by_file.write_text(json.dumps({"address": address}))
    wait_for_workers(cluster)
    for given in (address, str(by_file)):
        with DaskCluster.open(WorkSettings(scheduler=given)) as found:
            assert found.address.startswith("http://127.0.0.1:")
            assert (found.n_workers, found.n_sharing) == (2, 1)
            assert [found.memory_of_piece(given, 80) for given in (64, None)] == [64, 80]
            monkeypatch.setattr(found._client, "scheduler_info", lambda n_workers: {"workers": WORKERS})
            assert [found.memory_of_piece(given, 80) for given in (64, None)] == [64, 15]
            assert [one.result for one in found.run(abs, [-5])] == [5]
    assert [one.result for one in cluster.run(abs, [-6])] == [6]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere://127.0.0.1:9"])
def test_where_no_scheduler_answers_a_sentence_says_so(address, monkeypatch):
    monkeypatch.setattr(dask_cluster, "SECONDS_TO_CONNECT", 0.5)
    with pytest.raises(WorkerError, match=f"no scheduler of Dask answers at '{address}'.*'dask scheduler'"):
        DaskCluster.open(WorkSettings(scheduler=address))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b"[1]", b'"address"'])
def test_a_scheduler_file_that_is_missing_or_none_is_refused(content, tmp_path):
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_bytes(content)
    found = f"there is no scheduler file '{path}'" if content is None else f"'{path}' is not a readable scheduler file"
    with pytest.raises(
        WorkerError, match=f"^{found}[^:]*; give a file that 'dask scheduler --scheduler-file FILE' wrote"
    ):
        DaskCluster.open(WorkSettings(scheduler=str(path)))


def test_a_worker_of_other_versions_refuses(cluster, monkeypatch):
    here = dask_cluster._versions()
    monkeypatch.setattr(dask_cluster, "_versions", lambda: here | {"deconv": "9.9"})
    (one,) = cluster.run(abs, [1])
    assert isinstance(one.error, UsageError)
    assert f"has deconv {here['deconv']}," in str(one.error)
    assert "started with deconv 9.9" in str(one.error)


def test_a_worker_without_the_package_is_named_as_the_cause(cluster, monkeypatch, tmp_path):
    (tmp_path / "only_here.py").write_text("def task(number): return number")
    monkeypatch.syspath_prepend(tmp_path)
    from only_here import task

    (one,) = cluster.run(task, [1])
    assert isinstance(one.error, WorkerError)
    assert "failed: No module named 'only_here'; install the same deconv-cli there" in str(one.error)


def test_without_distributed_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'deconv-cli\[cluster\]'"):
        DaskCluster.open(WorkSettings(scheduler="tcp://127.0.0.1:9"))


@pytest.mark.exhaustive  # each trial starts a new worker
def test_a_piece_that_ends_every_worker_costs_only_itself(cluster, tmp_path):
    path = a_file(tmp_path)
    found = {one.number: one for one in cluster.run(DieAt(WriteUnit(path), {1: 9}), range(4))}
    assert [found[n].result for n in (0, 2, 3)] == [0, 20, 30]
    assert isinstance(found[1].error, WorkerError)
    assert "piece 1 of the work ended every worker that ran it" in str(found[1].error)


@pytest.mark.exhaustive  # Dask takes its time to give a scheduler up
def test_a_scheduler_that_ends_is_not_waited_for():
    with running(1) as cluster:
        run = cluster.run(sleep_from_two, range(4))
        assert {next(run).number, next(run).number} == {0, 1}
        cluster.started.close()
        with pytest.raises(WorkerError, match="the scheduler of the cluster ended before the work was done"):
            list(run)
