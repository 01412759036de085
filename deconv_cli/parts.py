"""Parts by name: built in, installed with another package, or registered by the caller.

A part is imported when it is first used, and nothing here imports torch. A built-in part takes its own file and a line
here. A caller adds a part by `register`, as in `deconv_cli.BOUNDARIES.register("antisymmetric", Antisymmetric())`;
docs/extending.md has examples. An installed package offers parts by entry points of the group `deconv.parts`, named
`KIND.NAME`, with hyphens for the spaces of the kind: `"kernel-source.ring" = "my_package:RING"`.
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


def _places(module: str, *names: str) -> dict[str, str]:
    """Give the places of parts in a module of this package, each in a constant of its name."""
    return {name: f"deconv_cli.{module}:{name.upper().replace('-', '_')}" for name in names}


BOUNDARIES: Registry[Any] = Registry(
    "boundary",
    _places("operators.boundary_rules", "zero", "circular", "reflect", "symmetric", "replicate", "unknown"),
)
"""What lies outside the image."""

PENALTIES: Registry[Any] = Registry("penalty", _places("regularizers", "identity", "gradient", "laplacian"))
"""The operator L in λ·σ²max·‖Lx‖²."""

SOLVERS: Registry[Any] = Registry(
    "method",
    {
        "fft": "deconv_cli.solvers.closed_form:CIRCULAR",
        "dct": "deconv_cli.solvers.closed_form:MIRRORED",
        "strip": "deconv_cli.solvers.strip:STRIP",
        "slab": "deconv_cli.solvers.slab:SLAB",
        "direct": "deconv_cli.solvers.direct:DIRECT",
        "phases": "deconv_cli.solvers.rearranged:PHASES",
        "dense": "deconv_cli.solvers.closed_form:DENSE",
        "varying": "deconv_cli.solvers.varying:VARYING",
        "iterative": "deconv_cli.solvers.iterative:ITERATIVE",
    },
)
"""How a quadratic problem is solved."""

PRIORS: Registry[Any] = Registry(
    "prior",
    {
        "nonnegative": "deconv_cli.solvers.nonnegative:NONNEGATIVE",
        "tv": "deconv_cli.solvers.total_variation:TOTAL_VARIATION",
        "richardson-lucy": "deconv_cli.solvers.richardson_lucy:RICHARDSON_LUCY",
        "photo": "deconv_cli.saved_files:PHOTO_PRIOR",
    },
)
"""Objectives other than a quadratic one, each with the solver that minimizes it."""
OWN_SETTINGS = {"nonnegative": "nonnegative=True", "richardson-lucy": 'method="richardson-lucy"'}
"""Objectives that are no value of the setting `prior`, and the settings that ask for them."""

KERNEL_SOURCES: Registry[Any] = Registry(
    "kernel source",
    _places(
        "kernels.sources.blurs",
        *("gaussian", "disk", "box", "motion", "polygon", "airy", "moffat", "disk-motion", "gaussian3d", "shift"),
    ),
)
"""Formulas for kernels: `name:NUMBER@NUMBER`."""

TAPS: Registry[Any] = Registry(
    "tap",
    {
        "product": "deconv_cli.kernels.receptive_field:multiply",
        "tan-sum": "deconv_cli.kernels.receptive_field:tangent_of_sum",
    },
)
"""Functions of a pixel and a weight that replace their product."""

LOSSES: Registry[Any] = Registry(
    "loss",
    {
        "squared": "deconv_cli.kernels.loss_fit:squared",
        "l1": "deconv_cli.kernels.loss_fit:l1",
        "huber": "deconv_cli.kernels.loss_fit:huber",
        "poisson": "deconv_cli.kernels.loss_fit:poisson",
    },
)
"""Functions that the fit of a kernel to pairs minimizes."""

CODECS: Registry[Any] = Registry(
    "file format",
    {
        **_places("io.codecs.tiff", "tiff"),
        **_places("io.codecs.pictures", "png", "jpeg", "webp", "avif", "bmp", "gif"),
        **_places("io.codecs.tensor_codecs", "torch", "safetensors"),
        **_places("io.codecs.npy", "npy", "npz"),
        **_places("io.codecs.zarr_folder", "zarr"),
        **_places("io.codecs.fits", "fits"),
    },
)
"""File formats, for images and tensors."""

SCHEDULERS: Registry[Any] = Registry(
    "scheduler",
    {
        "serial": "deconv_cli.schedulers.local_workers:SerialScheduler",
        "threads": "deconv_cli.schedulers.local_workers:ThreadPool",
        "processes": "deconv_cli.schedulers.local_workers:ProcessPool",
        "dask": "deconv_cli.schedulers.dask_cluster:DaskCluster",
    },
)
"""Who does many independent pieces of work; the last that covers the settings."""


def method_names() -> tuple[str, ...]:
    """List the names of methods: `auto`, the solvers of quadratic problems, and `richardson-lucy`."""
    return ("auto", *SOLVERS, "richardson-lucy")


def prior_names() -> tuple[str, ...]:
    """List what a prior may be called; two objectives have settings of their own instead."""
    return ("quadratic", *(name for name in PRIORS if name not in OWN_SETTINGS))
