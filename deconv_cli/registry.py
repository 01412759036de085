"""Parts by name: built in, installed with another package, or registered by the caller.

A part is imported when it is first used. An installed package offers parts by entry points of the group `deconv.parts`,
named `KIND.NAME`, with hyphens for the spaces of the kind: `"kernel-source.ring" = "my_package:RING"`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any, Generic, TypeVar

from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import check_name

Part = TypeVar("Part")


class ShownInNotebook:
    """An object that a notebook shows as a picture and a short table, which `report` draws."""

    def _repr_html_(self) -> str:
        shown: str = importlib.import_module("deconv_cli.report.notebook").as_html(self)
        return shown


GROUP = "deconv.parts"
"""The group of entry points by which other packages offer parts."""


class Registry(Generic[Part]):
    """The parts of one kind, by name, in the order in which they are considered.

    Built-in parts are given as `module:attribute`, so that their names are known without importing torch.

    Args:
        kind: the name of the kind in messages.
        modules: the place of each built-in part, `module:name`.
    """

    def __init__(self, kind: str, modules: Mapping[str, str]) -> None:
        self.kind = kind
        self._modules = dict(modules)
        self._parts: dict[str, Part] = {}

    @cached_property
    def _built_in(self) -> dict[str, str]:
        """Where the parts of this package and of installed ones are defined; the names of this package stay its own."""
        return _installed().get(self.kind.replace(" ", "-"), {}) | self._modules

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts."""
        return tuple(dict.fromkeys([*self._built_in, *self._parts]))

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a part of this name."""
        return name in self._built_in or name in self._parts

    def __getitem__(self, name: str) -> Part:
        """Return the part of a name, imported at its first use; an unknown name raises a `UsageError`."""
        if name not in self._parts:
            module, _, attribute = self._built_in[self.check(name)].partition(":")
            found: Any = getattr(importlib.import_module(module), attribute)
            self._parts[name] = found
        return self._parts[name]

    def check(self, name: object) -> str:
        """Return the name of a part; an unknown one raises a `UsageError`, which lists all and suggests the nearest."""
        return check_name(self.names, name, self.kind)

    def register(self, name: str, part: Part) -> Part:
        """Add a part under a new name, and return it; a name that is taken is a `UsageError`."""
        if name in self:
            raise UsageError(f"{self.kind} '{name}' is registered already; choose another name.")
        self._parts[name] = part
        return part

    def unregister(self, name: str) -> None:
        """Remove a part that `register` added; a built-in or unknown one is a `UsageError`."""
        if name in self._built_in or name not in self._parts:
            raise UsageError(f"{self.kind} '{name}' was not registered by the caller, so it cannot be removed.")
        del self._parts[name]


@cache
def _installed() -> dict[str, dict[str, str]]:
    """Find the parts that installed packages offer: kind → name → `module:attribute`."""
    from importlib.metadata import entry_points  # a sixth of the time of `deconv --help`, which needs no part

    found: dict[str, dict[str, str]] = {}
    for point in entry_points(group=GROUP):
        kind, _, name = point.name.partition(".")
        found.setdefault(kind, {})[name] = point.value
    return found
