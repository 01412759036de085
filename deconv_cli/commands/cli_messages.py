"""Sentences of the library in the words of the command line: names of arguments become options."""

from __future__ import annotations

from dataclasses import fields

from deconv_cli.settings import ReconstructionSettings, option_name

_SETTINGS = {
    "lambda": "--lambda",
    **{field.name: option_name(field.name) for field in fields(ReconstructionSettings)},
    **{name: option_name(name) for name in ("jobs", "cluster", "scheduler", "block_range", "time_limit")},
}
"""Settings, and options on workers, that begin a sentence about themselves; some are words of other sentences too."""
_VERBS = ("must", "is", "has", "draws", "helps", "chooses", "says", "truncates", "divides")
_ARGUMENTS = {
    "lam": "--lambda",
    **{field.name: option_name(field.name) for field in fields(ReconstructionSettings) if "_" in field.name},
    "output_dtype": "--output-dtype",
    "trusted_sha256": "--trust-file",
    "allowed_globals": "--allow-global",
    "time_limit": "--time-limit",
    "batch_axis": "--batch-axis",
    "batch_size": "--batch-size",
    "block_size": "--block-size",
}
"""Arguments that are no English words."""
_OPENING, _CLOSING, _QUOTES = "([", ".,;:)]", "\"'"


def with_options(sentence: str) -> str:
    """Write a sentence for a person at the prompt: `dtype="float64"` becomes `--dtype float64`, and so on."""
    words = sentence.split(" ")
    if len(words) > 1 and words[1] in _VERBS:
        words[0] = _SETTINGS.get(words[0], words[0])
    return " ".join(map(_as_typed, words))


def _as_typed(word: str) -> str:
    """Replace an argument, or an argument with its value, between the punctuation around it."""
    inner = word.lstrip(_OPENING).rstrip(_CLOSING)
    name, _, value = inner.partition("=")
    if not value or not name.isidentifier():
        name = inner.strip(_QUOTES)
        return word.replace(name, _ARGUMENTS.get(name, name))
    option = _ARGUMENTS.get(name, option_name(name))
    if value == "False":
        option = option.replace("--", "--no-", 1)
    elif value != "True":
        option += f" {value.strip(_QUOTES)}"
    return word.replace(inner, option)
