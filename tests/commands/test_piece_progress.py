"""What is said of many pieces: how many are done, how fast, and when the rest will be."""

import pytest
import typer

from deconv_cli.commands.progress import PieceProgress, WorkProgress


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0.5, "4 of 10 files, 2 files a second, about 3 s left"),
        (30.0, "4 of 10 files, 2 files a minute, about 3 min left"),
        (1800.0, "4 of 10 files, 2 files an hour, about 3.0 h left"),
    ],
)
def test_rate_and_time_left(clock, seconds, line):
    progress = PieceProgress(10, clock=clock)
    assert progress.line() == "0 of 10 files"
    for _ in range(4):
        clock.now += seconds
        progress.advance()
    assert progress.line() == line


def test_the_rate_is_that_of_the_last_pieces(clock):
    progress = PieceProgress(1000, "block", clock=clock)
    for seconds in [100.0] * 10 + [1.0] * 200:
        clock.now += seconds
        progress.advance()
    assert progress.line() == "210 of 1000 blocks, 1 block a second, about 13 min left"


def test_the_wait_for_workers_does_not_count(clock):
    progress = PieceProgress(1000, "block", clock=clock)
    for seconds in [100.0] + [1.0] * 20:
        clock.now += seconds
        progress.advance()
    assert progress.line() == "21 of 1000 blocks, 1 block a second, about 16 min left"


def test_pieces_of_an_earlier_run_say_nothing_of_the_rate(clock):
    progress = PieceProgress(10, "block", clock=clock)
    clock.now += 1e-3
    progress.reach(5, 10)
    assert progress.line() == "5 of 10 blocks"
    clock.now += 20.0
    progress.advance()
    assert progress.line() == "6 of 10 blocks, 3 blocks a minute, about 80 s left"


def test_a_log_has_a_line_a_minute(clock, capsys):
    progress = PieceProgress(100, clock=clock)
    with progress.shown():
        for _ in range(20):
            clock.now += 7.0
            progress.tell("restoring")
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # 140 seconds
    assert lines[1].startswith("17 of 100 files, 8.57 files a minute, about 10 min left")


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
