"""Reading .pt2 files: scanned to the last string first, so that nothing in them is unpickled or evaluated.

`torch.export.load` unpickles payloads that are marked so, evaluates strings as symbolic expressions and as guards, and
imports the modules that a tree of arguments names. All that is refused here, and what is loaded is an archive written
anew from what was scanned, so that two readers of zip files cannot see two different things.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deconv_cli.errors import MalformedInputError, UnsafeInputError
from deconv_cli.io.model_format import read_entries
from deconv_cli.io.sources import refusing_damage

_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/\w+\.json"
    r"|data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|data/sample_inputs/\w+\.pt|extra/\w+"
)
_NAME = re.compile(r"[\w.@$\[\]':/ -]*")
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|torch\.sym_\w+|math\.(floor|ceil|trunc|sqrt|pow)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_FORBIDDEN_TARGETS = ("aten.from_file", "__")
_EXPRESSION = re.compile(
    r"(Symbol\('\w+'(, (positive|integer|real|nonnegative)=True)*\)|(Integer|Float|Rational)\([\d., ']+\)"
    r"|\b(Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv|CleanDiv|PythonMod|IntTrueDiv|Eq|Ne|Lt|Le|Gt|Ge|StrictLessThan"
    r"|LessThan|GreaterThan|StrictGreaterThan|Equality|Unequality|true|false|s\d+|u\d+|\d+(\.\d+)?)\b"
    r"|[()+*/,<>= -])*"
)
_TREE_TYPES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None}


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported program and the inputs it was exported with."""

    program: torch.export.ExportedProgram
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
                f"'{path}' holds '{_shown(name)}', which is more than a program and its tensors (a pickled object or "
                "compiled code); export it again with torch.export.save, without custom objects."
            )
    for name, content in entries.items():
        if name.endswith(".json"):
            _check_document(path, name, _parsed(path, name, content))
        elif name.startswith("data/sample_inputs/"):
            _check_sample_inputs(path, content)
    return _load(path, entries)


def _parsed(path: Path, name: str, content: bytes) -> Any:  # noqa: ANN401
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedInputError(f"'{path}' is damaged: its '{name}' is not JSON.") from error


def _check_document(path: Path, name: str, document: Any) -> None:  # noqa: ANN401
    if name.endswith("_config.json"):
        payloads = document.get("config", {}) if isinstance(document, dict) else {}
        for tensor, payload in payloads.items():
            if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
                raise UnsafeInputError(
                    f"'{path}' holds '{_shown(tensor)}' as a pickled payload, which would run code when opened; "
                    "export the program again with dense tensors only."
                )
    for trail, text in _strings_in(document, ()):
        problem = _problem_with(trail, text)
        if problem:
            raise UnsafeInputError(
                f"'{path}' is refused: {problem} '{_shown(text)}' in '{name}' would be evaluated when opened."
            )


def _strings_in(found: Any, trail: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:  # noqa: ANN401
    if isinstance(found, dict):
        for key, member in found.items():
            yield (*trail, "a key"), key
            yield from _strings_in(member, (*trail, key))
    elif isinstance(found, list):
        for member in found:
            yield from _strings_in(member, trail)
    elif isinstance(found, str):
        yield trail, found


def _problem_with(trail: tuple[str, ...], text: str) -> str | None:
    """Say what is wrong with a string, or None: each kind may hold only what an honest writer puts there."""
    place = trail[-1] if trail else ""
    if place == "a key":
        if text in ("as_custom_obj", "as_opaque"):
            return "the custom object"
        return None if _NAME.fullmatch(text) and "__enum__" not in text else "the name"
    # What stands under a node's metadata is shown, or looked up among torch's own names, and nothing more.
    if "metadata" in trail:
        return None
    if place in ("in_spec", "out_spec"):
        return None if _is_plain_tree(text) else "the tree"
    if place == "expr_str":
        return None if _EXPRESSION.fullmatch(text) else "the expression"
    if place == "guards_code":
        return "the guard"
    if place == "target":
        return (
            None if _TARGET.fullmatch(text) and not any(bad in text for bad in _FORBIDDEN_TARGETS) else "the operator"
        )
    if place == "as_string":
        return None
    if place == "torch_version":
        return None if re.fullmatch(r"[\w.+-]*", text) else "the version"
    if place == "name":
        return None if text.replace(".", "_").isidentifier() or not text else "the name"
    return None if _NAME.fullmatch(text) else "the name"


def _is_plain_tree(text: str) -> bool:
    if not text:
        return True
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return False
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if not set(node) <= {"type", "context", "children_spec"} or node.get("type") not in _TREE_TYPES:
                return False
            if "__" in str(node.get("context")):
                return False
            waiting += node.get("children_spec") or []
    return True


def _check_sample_inputs(path: Path, content: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise UnsafeInputError(
            f"'{path}' carries example inputs that are more than tensors and numbers; opening them could run code."
        ) from error


def _load(path: Path, entries: dict[str, bytes]) -> ExportedModel:
    rewritten = io.BytesIO()
    with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    rewritten.seek(0)
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with refusing_damage(path, "an exported program"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(rewritten)
            examples = program.example_inputs
    finally:
        logger.setLevel(level)
    if examples is None:
        return ExportedModel(program, None, {})
    return ExportedModel(program, tuple(examples[0]), dict(examples[1]))


def _shown(text: str) -> str:
    """Cut a hostile string down to something that can be shown."""
    return "".join(character if character.isprintable() else "?" for character in text)[:60]
