"""The table of a run at the prompt: one screen, what was done and how good it is first."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.prompt_sentences import with_options
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import option_name


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


def test_verbose_adds_the_numbers_for_experts(deconv, words):
    told = deconv(*words, "--boundary", "zero", "--lambda", "1e-3", "--verbose").stderr
    assert {"minimized", "padding", "method", "solver", "conditioning"} <= set(names(told))
    assert re.search(r"certificate \S+, tolerance 1e-06", told)
    assert re.search(r"σmax 1, σmin \S+, condition \S+", told)


def test_a_long_name_is_cut_in_the_middle_and_each_note_stands_once(deconv, words, tmp_path):
    (tmp_path / ("a long name " * 6)).mkdir()
    words[words.index("-o") + 1] = tmp_path / ("a long name " * 6) / "restored.tif"
    done = deconv(*words)
    (row,) = (line for line in done.stderr.splitlines() if line.startswith("output"))
    assert re.fullmatch(r"output +\S{9}….*a long name /restored.tif  32×36 float32", row.rstrip())
    assert done.stdout == f"{words[words.index('-o') + 1]}\n"
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert len(notes) == len(set(notes))


def test_warnings_come_before_notes_and_speak_of_options(deconv, words):
    spent = ["--boundary", "zero", "--method", "iterative", "--lambda", "1e-6", "--max-iterations", "1"]
    lines = deconv(*words, *spent, expect=ExitCode.UNTRUSTWORTHY).stderr.splitlines()
    said = [line for line in lines if line.startswith(("warning:", "note:"))]
    assert said[0].startswith("warning: the solver did not finish: the iterations ran out")
    assert "--max-iterations" in said[0]
    assert "max_iterations" not in said[0]
    kinds = [line.partition(":")[0] for line in said]
    assert kinds == sorted(kinds, reverse=True)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("no minimum; set lam to a number", "no minimum; set --lambda to a number"),
        ('use dtype="float64" or a larger λ.', "use --dtype float64 or a larger λ."),
        ('choose one with layer="NAME".', "choose one with --layer NAME."),
        ("raise max_iterations, λ or tolerance", "raise --max-iterations, λ or tolerance"),
        ("more than max_memory allows", "more than --max-memory allows"),
        ("pass normalize=False.", "pass --no-normalize."),
        ("pass force=True to replace it.", "pass --force to replace it."),
        ('made with input_size="14,15".', "made with --input-size 14,15."),
        ("jobs=2 and scheduler=a exclude one another", "--jobs 2 and --scheduler a exclude one another"),
        ("jobs must be a positive whole number", "--jobs must be a positive whole number"),
        ("the kernel should be of shape (4,), but is (3,).", "the kernel should be of shape (4,), but is (3,)."),
        ("spacing must be two numbers, but is (1, 2, 3).", "--spacing must be two numbers, but is 1,2,3."),
        (
            "noise must be white, auto or, in Python, a NoiseModel, but is 1; noise_sigma",
            "--noise must be white, auto or, in Python, a NoiseModel, but is 1; --noise-sigma",
        ),
        ("use one of them, or leave iterations out.", "use one of them, or leave --iterations out."),
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
