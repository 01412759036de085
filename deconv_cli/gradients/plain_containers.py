"""Parameters and modules kept in plain Python lists, of which a module of torch knows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from deconv_cli.vocabulary import counted

REGISTERED = ("_parameters", "_buffers", "_modules")


def describe_plain_containers(model: nn.Module) -> list[str]:
    """List which members of the modules are plain lists, tuples or dictionaries of parameters or modules.

    What is registered under another name as well is left out. One sentence for each member, without a final stop.
    """
    modules = {id(module) for module in model.modules()}
    parameters = {id(parameter) for parameter in model.parameters()}
    sentences = []
    for name, module in model.named_modules():
        for member, value in vars(module).items():
            if member in REGISTERED or member.endswith("_hooks") or not is_plain(value):
                continue
            leaves = list(leaves_of(value))
            lost_parameters = [x for x in leaves if isinstance(x, nn.Parameter) and id(x) not in parameters]
            lost_modules = [x for x in leaves if isinstance(x, nn.Module) and id(x) not in modules]
            # A module without parameters, such as an activation, loses nothing.
            lost_modules = [x for x in lost_modules if any(True for _ in x.parameters())]
            for lost, word in ((lost_parameters, "parameter"), (lost_modules, "module")):
                if lost:
                    where = f"self.{member}" + (f" of '{name}'" if name else "")
                    sentences.append(_describe(where, value, len(lost), word))
    return sentences


def _describe(where: str, value: Any, n: int, word: str) -> str:  # noqa: ANN401
    kind, registered = ("dictionary", "Dict") if isinstance(value, dict) else (type(value).__name__, "List")
    known = "it is" if n == 1 else "they are"
    return (
        f"{where} is a plain {kind} of {counted(n, word)}, which the model does not know, so that "
        f"{known} neither checked nor trained; use nn.{word.capitalize()}{registered}"
    )


def is_plain(value: Any) -> bool:  # noqa: ANN401
    """Return whether something is a plain container, of which a module of torch knows nothing."""
    return isinstance(value, list | tuple | dict)


def leaves_of(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """List what a container holds, however deep; one that holds itself is entered once."""
    waiting, seen = [value], set[int]()
    while waiting:
        found = waiting.pop()
        if not isinstance(found, list | tuple | dict):
            yield found
        elif id(found) not in seen:
            seen.add(id(found))
            waiting += reversed(list(found.values() if isinstance(found, dict) else found))
