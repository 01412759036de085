"""Sentences for a person at the prompt: the settings that they name become options."""

from __future__ import annotations

import re
from dataclasses import fields

from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import option_name

_NAMES = [field.name for field in fields(ReconstructionSettings)]
_SETTINGS = {"lambda", *_NAMES, "jobs", "scheduler", "block_range", "time_limit", "tap", "size"}
"""Settings, and options on workers, that begin a sentence about themselves; some are words of other sentences too."""
_VERBS = ("must", "is", "has", "draws", "helps", "chooses", "says", "truncates", "divides")
_LONG = ("output_dtype", "time_limit", "batch_axis", "batch_size", "block_size")
_ARGUMENTS = {name: option_name(name) for name in (*_NAMES, *_LONG) if name == "lam" or "_" in name}
"""Arguments that are no English words."""
_LEFT_OUT = re.compile(rf"(?<=\bleave )({'|'.join(sorted(_SETTINGS))})(?= out\b)")
_OPENING, _CLOSING, _QUOTES = "([", ".,;:)]", "\"'"
_TUPLE = re.compile(r"(?<=but is )\((?:[\d., -]|\([\d., -]*\))*\)(?=\.?$)")
"""A typed value as Python writes it, at the end of a sentence."""


def with_options(sentence: str) -> str:
    """Write a sentence for a person at the prompt: `dtype="float64"` becomes `--dtype float64`, `(3, 5)` becomes `3,5`.

    Words of other programs, in “these quotation marks”, stay unchanged.
    """
    words = sentence.split(" ")
    if len(words) > 1 and words[1] in _VERBS and words[0] in _SETTINGS:
        words[0] = option_name(words[0])
    if words[0].startswith("--"):
        words = _TUPLE.sub(lambda found: _as_numbers(found[0]), " ".join(words)).split(" ")
    parts = re.split("(“[^”]*”)", " ".join(words))
    parts[::2] = (_LEFT_OUT.sub(r"--\1", " ".join(map(_as_typed, own.split(" ")))) for own in parts[::2])
    return "".join(parts)


def _as_numbers(text: str) -> str:
    """Write a tuple as it is typed: `(1, 2)` as `1,2`, and `((1, 2), 3)` as `1:2,3`."""
    pairs = re.sub(r"\(([^()]*)\)", lambda pair: pair[1].replace(", ", ":"), text[1:-1].rstrip(","))
    return pairs.replace(", ", ",")


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
