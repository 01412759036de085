"""The table of a run at the prompt: one screen, what was done and how good it is first, and the rest when verbose."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from rich.console import Console

from deconv_cli.commands.console import SHADES, show_picture
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.settings import ReconstructionSettings, option_name, with_options


@pytest.fixture
def words(deconv, gray, gentle, tmp_path, monkeypatch):
    """A restoration of a noisy picture with everything that a table may tell, on a screen of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    blurred = tmp_path / "blurred.tif"
    deconv("forward", gray, "-k", gentle, "--noise", "gaussian:1", "-o", blurred, "--quiet")
    return ["invert", blurred, "-k", gentle, "--truth", gray, "-o", tmp_path / "restored.tif", "--force"]


def names(stderr):
    """The first word of each row."""
    rows = [line for line in stderr.splitlines()[1:] if line and not line.startswith((" ", "note:", "warning:"))]
    return [line.split("  ")[0] for line in rows]


def test_the_table_fits_a_screen(deconv, words):
    lines = deconv(*words).stderr.splitlines()
    table = [line for line in lines if not line.startswith(("note:", "warning:"))]
    assert len(table) <= 10, "\n".join(table)
    assert max(map(len, table)) <= 100
    assert names("\n".join(table)) == [
        *("input", "kernel", "boundary", "light", "prior", "residual", "expected error"),
        *("output", "cost"),
    ]


def test_a_long_name_is_cut_in_the_middle_and_each_note_stands_once(deconv, words, tmp_path):
    (tmp_path / ("a long name " * 6)).mkdir()
    words[words.index("-o") + 1] = tmp_path / ("a long name " * 6) / "restored.tif"
    done = deconv(*words)
    (row,) = (line for line in done.stderr.splitlines() if line.startswith("output"))
    assert re.fullmatch(r"output +\S{9}….*a long name /restored.tif  32×36 float32", row.rstrip())
    assert done.stdout == f"{words[words.index('-o') + 1]}\n"
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert len(notes) == len(set(notes))


def test_verbose_adds_what_an_expert_wants(deconv, words):
    words = [*words, "--prior", "quadratic"]
    usual, whole = names(deconv(*words).stderr), names(deconv(*words, "--verbose").stderr)
    assert [name for name in whole if name in usual] == usual
    expert = {"minimized", "solver", "padding", "method", "tolerance", "conditioning", "at the edge"}
    assert expert <= set(whole) - set(usual)


def test_warnings_come_before_notes_and_speak_of_options(deconv, words):
    spent = ["--boundary", "zero", "--method", "iterative", "--lambda", "1e-6", "--max-iterations", "1"]
    lines = deconv(*words, *spent, expect=ExitCode.UNTRUSTWORTHY).stderr.splitlines()
    said = [line for line in lines if line.startswith(("warning:", "note:"))]
    assert said[0].startswith("warning: the solver did not finish: the iterations ran out")
    assert "--max-iterations" in said[0]
    assert "max_iterations" not in said[0]
    kinds = [line.partition(":")[0] for line in said]
    assert kinds == sorted(kinds, reverse=True)


def test_verbose_shows_the_certificate_and_the_distance_to_the_solution(deconv, save, gentle, tmp_path):
    data = save("y", np.random.default_rng(0).random((20, 20)))
    words = ["invert", data, "-k", gentle, "--lambda", "1e-2", "--method", "iterative", "-o", tmp_path / "x.npy"]
    assert "certificate" not in deconv(*words).stderr
    done = deconv(*words, "--json", "--verbose", "--force")
    bound = done.report["solver"]["distance_bound"]
    assert 0 < bound < 1e-2
    assert f", within {100 * bound:.2g} % of the solution" in " ".join(done.stderr.split())


def test_channels_that_are_solved_in_several_ways_have_all_of_them_named(deconv, tmp_path):
    np.save(tmp_path / "y.npy", np.random.default_rng(0).random((3, 5, 5)))
    more = ["--defaults", "picture", "--lambda", "1e-3,1e3,0.4", "-v", "-o", tmp_path / "x.npy"]
    (row,) = (
        line
        for line in deconv("invert", tmp_path / "y.npy", "-k", "disk:3", *more).stderr.splitlines()
        if line.startswith("solver")
    )
    assert "direct and strip" in row


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("no minimum; set lam to a number", "no minimum; set --lambda to a number"),
        ("lambda must be auto, zero or a positive number, but is -1.0.", "--lambda must be auto, zero or a positive"),
        ("dtype must be one of float32, float64.", "--dtype must be one of float32, float64."),
        ('use dtype="float64" or a larger λ.', "use --dtype float64 or a larger λ."),
        ('choose one with layer="NAME".', "choose one with --layer NAME."),
        ("raise max_iterations, λ or tolerance", "raise --max-iterations, λ or tolerance"),
        ("more than max_memory allows", "more than --max-memory allows"),
        ("pass normalize=False.", "pass --no-normalize."),
        ("pass force=True to replace it.", "pass --force to replace it."),
        ('made with input_size="14,15".', "made with --input-size 14,15."),
        ("rcond truncates singular values", "--rcond truncates singular values"),
        ("iterations is for", "--iterations is for"),
        ("spacing divides differences", "--spacing divides differences"),
        ("noise_sigma helps to choose λ", "--noise-sigma helps to choose λ"),
        ("jobs=2 and scheduler=a exclude one another", "--jobs 2 and --scheduler a exclude one another"),
        ("jobs must be a positive whole number", "--jobs must be a positive whole number"),
        ("block_range must be i/N", "--block-range must be i/N"),
        ("the padding of the layer is 1.", "the padding of the layer is 1."),
        ("--max-memory stays as it is.", "--max-memory stays as it is."),
        ("use groups=1: “Given groups=1, lam [2]”.", "use --groups 1: “Given groups=1, lam [2]”."),
    ],
)
def test_arguments_become_options(sentence, expected):
    assert with_options(sentence).startswith(expected)


@pytest.mark.parametrize("name", [field.name for field in fields(ReconstructionSettings)])
def test_every_setting_that_begins_a_sentence_is_named_as_its_option(name):
    assert with_options(f"{name} must be something.") == f"{option_name(name)} must be something."


def drawn(image, monkeypatch, capsys, *, width=40, height=30, is_color=False, n_axes=2, **options):
    """Draw on a terminal of a size, and give the lines that it gets."""
    settings = {"force_terminal": True, "color_system": "truecolor", **options}
    monkeypatch.setattr(
        "rich.console.Console", lambda **given: Console(width=width, height=height, **{**given, **settings})
    )
    show_picture(image, is_color=is_color, n_axes=n_axes)
    return capsys.readouterr().err.splitlines()


def colors_of(line):
    """The colors above and below of every letter."""
    found = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)", line)
    return [tuple(map(int, numbers)) for *numbers, letters in found for _ in letters]


def test_two_pixels_share_a_letter(monkeypatch, capsys):
    image = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]])
    first, second, note = drawn(image, monkeypatch, capsys)
    assert colors_of(first) == [(0, 0, 0, 255, 255, 255), (255, 255, 255, 0, 0, 0)]
    assert colors_of(second) == [(128, 128, 128, 0, 0, 0), (128, 128, 128, 255, 255, 255)]
    assert "4×2 pixels as 4×2; black is 0, white is 1" in note


def test_of_a_stack_the_plane_in_the_middle_is_drawn_and_a_signal_is_a_line(monkeypatch, capsys):
    stack = torch.zeros(1, 1, 3, 2, 2)
    stack[0, 0, 1, 0] = 1.0
    line, note = drawn(stack, monkeypatch, capsys, n_axes=3)
    assert colors_of(line) == [(255, 255, 255, 0, 0, 0)] * 2
    assert "2×2 pixels" in note
    _, note = drawn(torch.rand(2, 12), monkeypatch, capsys, n_axes=1)
    assert "channel 1 of 2, 1×12 pixels" in note


def test_colors_are_colors(monkeypatch, capsys):
    image = torch.zeros(3, 2, 2)
    image[0, 0], image[2, 1] = 1.0, 1.0
    line, _ = drawn(image, monkeypatch, capsys, is_color=True)
    assert colors_of(line) == [(255, 0, 0, 0, 0, 255)] * 2
    gray, note = drawn(image, monkeypatch, capsys)
    assert colors_of(gray) == [(255, 255, 255, 0, 0, 0)] * 2
    assert "channel 1 of 3" in note


@pytest.mark.parametrize(("shape", "width", "height"), [((200, 300), 40, 30), ((300, 20), 40, 12), ((3, 500), 33, 30)])
def test_it_fits_the_terminal(monkeypatch, capsys, shape, width, height):
    *lines, note = drawn(torch.rand(1, *shape), monkeypatch, capsys, width=width, height=height)
    while "drawn:" not in note:
        note = lines.pop() + note
    widths = {len(colors_of(line)) for line in lines}
    assert len(widths) == 1
    assert max(widths) <= width
    assert len(lines) <= height - 4
    assert max(widths) / (2 * len(lines)) == pytest.approx(shape[1] / shape[0], rel=0.25) or shape[0] == 3


def test_without_colors_there_are_shades(monkeypatch, capsys):
    image = torch.linspace(0, 1, 10).expand(1, 10, 10)
    *lines, _ = drawn(image, monkeypatch, capsys, color_system=None, no_color=True)
    assert len(lines) == 5
    assert all(line == lines[0] for line in lines)
    assert [SHADES.index(letter) for letter in lines[0]] == sorted(SHADES.index(letter) for letter in lines[0])
    assert {lines[0][0], lines[0][-1]} == {" ", "█"}


def test_values_that_are_not_finite_do_not_matter(monkeypatch, capsys):
    image = torch.tensor([[[0.0, float("nan")], [1.0, float("inf")]]])
    line, note = drawn(image, monkeypatch, capsys)
    assert colors_of(line) == [(0, 0, 0, 255, 255, 255)] * 2
    assert "white is 1" in note
