"""Whether a module that came from a pickle is put together as torch puts modules together.

A pickle may fill the dictionary of a module with anything, and the methods of a module trust their dictionary; so this
looks at the dictionaries alone and calls no method.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deconv_cli.errors import MalformedInputError

_MAX_DEPTH = 200


def check_structure(path: Path, module: nn.Module) -> None:
    """Check a module and all below it.

    Raises:
        MalformedInputError: a member is missing, of the wrong type, or stands for a method; or a module holds itself.
    """
    waiting: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", module, ())]
    seen: set[int] = set()
    while waiting:
        name, found, above = waiting.pop()
        if id(found) in above or len(above) > _MAX_DEPTH:
            raise _malformed(path, name, "holds itself")
        if id(found) in seen:
            continue
        seen.add(id(found))
        for complaint in _complaints(found):
            raise _malformed(path, name, complaint)
        children = vars(found)["_modules"].items()
        waiting += [
            (f"{name}.{n}".lstrip("."), child, (*above, id(found))) for n, child in children if child is not None
        ]


def _complaints(module: nn.Module) -> Iterator[str]:
    members = vars(module)
    kinds: dict[str, type] = {"_parameters": nn.Parameter, "_buffers": torch.Tensor, "_modules": nn.Module}
    for group, kind in kinds.items():
        found = members.get(group)
        if not isinstance(found, dict):
            yield f"has no {group[1:]}"
            return
        for name, value in found.items():
            if not isinstance(name, str) or not name or "." in name:
                yield f"has a member of {group[1:]} without a proper name"
            elif value is not None and not isinstance(value, kind):
                yield f"has a {type(value).__name__} among its {group[1:]}"
            elif name in members or _is_method(name):
                yield f"has '{name[:40]}' twice"
    if not isinstance(members.get("training"), bool):
        yield "does not say whether it is in training"
    for name, value in members.items():
        if name.endswith("_hooks") and not _are_hooks(value):
            yield f"has '{name}' that are no hooks"
        if not isinstance(name, str) or _is_method(name):
            yield f"has its method '{str(name)[:40]}' replaced"


def _is_method(name: str) -> bool:
    return name == "forward" or callable(getattr(nn.Module, name, None))


def _are_hooks(found: Any) -> bool:  # noqa: ANN401
    return isinstance(found, dict) and all(callable(hook) for hook in found.values())


def _malformed(path: Path, name: str, complaint: str) -> MalformedInputError:
    where = f"its module '{name[:80]}'" if name else "its module"
    return MalformedInputError(
        f"'{path}' is not a model as torch saves it: {where} {complaint}; save it again, or its state_dict() alone."
    )
