"""Sentences of the library become sentences for the prompt: names of arguments turn into options, words stay words."""

from dataclasses import fields

import pytest

from deconv_cli.commands.console import with_options
from deconv_cli.settings import ReconstructionSettings, option_name


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
        ("rcond truncates instead of λ", "--rcond truncates instead of λ"),
        ("iterations says how many", "--iterations says how many"),
        ("spacing divides differences", "--spacing divides differences"),
        ("noise_sigma helps to choose λ", "--noise-sigma helps to choose λ"),
        ("jobs=2 and cluster=local:3 each say", "--jobs 2 and --cluster local:3 each say"),
        ("jobs must be a positive whole number", "--jobs must be a positive whole number"),
        ("block_range must be i/N", "--block-range must be i/N"),
        ("the padding of the layer is 1.", "the padding of the layer is 1."),
        ("--max-memory stays as it is.", "--max-memory stays as it is."),
    ],
)
def test_arguments_become_options(sentence, expected):
    assert with_options(sentence).startswith(expected)


@pytest.mark.parametrize("name", [field.name for field in fields(ReconstructionSettings)])
def test_every_setting_that_begins_a_sentence_is_named_as_its_option(name):
    assert with_options(f"{name} must be something.") == f"{option_name(name)} must be something."
