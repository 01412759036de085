"""Reading .pt2 files: what torch loads is an archive written anew from what was checked here.

So nothing in the file is unpickled or evaluated, and two readers of zip files cannot see two different things.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.sources import refusing_damage
from deconv_cli.models.model_format import read_entries
from deconv_cli.models.program_document import rebuilt_payloads, rebuilt_program, shown

_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/\w+"
)
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_EXAMPLES = "data/sample_inputs/model.pt"
_HEADER = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": sys.byteorder.encode(), "version": b"3\n"}


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported program as a module of nodes, and the inputs it was exported with."""

    module: torch.fx.GraphModule
    example_arguments: tuple[Any, ...] | None
    example_keywords: dict[str, Any]


def read_exported_program(path: Path) -> ExportedModel:
    """Read a .pt2 file.

    Raises:
        UnsafeInputError: it holds pickled payloads, or strings that loading it would evaluate.
        MalformedInputError: damaged, or written by another version of torch.
    """
    entries = read_entries(path)
    for name in entries:
        if not _ENTRIES.fullmatch(name):
            raise UnsafeInputError(
                f"'{path}' holds '{shown(name)}', which is more than a program and its tensors (a pickled object or "
                "compiled code); export it again with torch.export.save, without custom objects."
            )
    if entries.get("byteorder", b"").strip() != sys.byteorder.encode():
        raise MalformedInputError(f"'{path}' stores its numbers in another byte order than this machine's; convert it.")
    rebuilt = {name: content for name, content in entries.items() if _TENSORS.fullmatch(name)}
    rebuilt["models/model.json"] = _encoded(rebuilt_program(path, _parsed(path, "models/model.json", entries)))
    for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        rebuilt[name] = _encoded(rebuilt_payloads(path, _parsed(path, name, entries)))
    arguments, keywords = _read_examples(path, entries.get(_EXAMPLES, b""))
    # The examples are read here; torch would fall back to running what it cannot read as plain data.
    rebuilt[_EXAMPLES] = b""
    return ExportedModel(_load(path, rebuilt), arguments, keywords)


def _parsed(path: Path, name: str, entries: dict[str, bytes]) -> Any:  # noqa: ANN401
    if name not in entries:
        raise MalformedInputError(
            f"'{path}' is damaged, or written by an older torch than can be read: it lacks '{name}'; export it again."
        )
    try:
        return json.loads(entries[name])
    except (ValueError, RecursionError) as error:
        raise MalformedInputError(f"'{path}' is damaged: its '{name}' is not JSON.") from error


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _read_examples(path: Path, content: bytes) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    if not content:
        return None, {}
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([]):
            warnings.simplefilter("ignore")
            found = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise UnsafeInputError(
            f"'{path}' carries example inputs that are more than tensors and numbers; opening them could run code."
        ) from error
    if found is None:
        return None, {}
    match found:
        case (tuple() | list() as arguments, dict() as keywords) if all(isinstance(key, str) for key in keywords):
            return tuple(arguments), keywords
    raise MalformedInputError(f"'{path}' is damaged: its example inputs are not arguments and keywords.")


def _load(path: Path, entries: dict[str, bytes]) -> torch.fx.GraphModule:
    rewritten = io.BytesIO()
    with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (_HEADER | entries).items():
            archive.writestr(f"model/{name}", content)
    rewritten.seek(0)
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with refusing_damage(path, "an exported program"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(rewritten).module(check_guards=False)
    finally:
        logger.setLevel(level)
    assert isinstance(module, torch.fx.GraphModule)
    return module
