"""Pictures in the terminal, letter by letter."""

import re

import pytest
import torch
from rich.console import Console

from deconv_cli.commands.console import SHADES, show_picture


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
