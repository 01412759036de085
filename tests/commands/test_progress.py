"""The progress of a run: its steps, the pieces that are done, and the time left."""

import pytest
import typer

from deconv_cli.commands.progress import PieceProgress, WorkProgress


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
