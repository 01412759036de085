"""Sentences of the library in the words of the command line: here names of arguments become options."""

from __future__ import annotations

import re
from dataclasses import fields

from deconv_cli.settings import ReconstructionSettings, option_name

_SETTINGS = {
    "lambda": "--lambda",
    **{field.name: option_name(field.name) for field in fields(ReconstructionSettings)},
    **{name: option_name(name) for name in ("jobs", "cluster", "scheduler", "block_range", "time_limit")},
}
"""Settings, and options on workers, which begin a sentence about themselves."""

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
"""Arguments that are no words of a sentence by themselves."""

_WITH_VALUE = re.compile(r"\b([a-z_]\w*)=(\"[^\"]*\"|'[^']*'|[^\s,;()]*[^\s,;().])")
_ALONE = re.compile(rf"(?<![-\w])({'|'.join(map(re.escape, _ARGUMENTS))})(?![\w=])")
_FIRST = re.compile(rf"^({'|'.join(_SETTINGS)})(?= (?:must|is|has|draws|helps|chooses|says|truncates|divides) )")
_QUOTES = "\"'"


def with_options(sentence: str) -> str:
    """Write a sentence for a person at the prompt: `dtype="float64"` becomes `--dtype float64`, and so on."""
    sentence = _FIRST.sub(lambda found: _SETTINGS[found[1]], sentence)
    sentence = _WITH_VALUE.sub(lambda found: _as_typed(found[1], found[2].strip(_QUOTES)), sentence)
    return _ALONE.sub(lambda found: _ARGUMENTS[found[1]], sentence)


def _as_typed(name: str, value: str) -> str:
    option = _ARGUMENTS.get(name, option_name(name))
    if value == "False":
        return option.replace("--", "--no-", 1)
    return option if value == "True" else f"{option} {value}"
