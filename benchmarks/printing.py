"""Tables of the measured figures, their targets, and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks.measuring import Figures

PACKAGES = (
    "deconv-cli",
    "torch",
    "numpy",
    "scipy",
    "sigpy",
    "pylops",
    "deepinv",
    "scikit-image",
    "ci-deconvolve",
    "RedLionfish",
    "torchtest2",
    "torchvision",
    "transformers",
)
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE")


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the title is a sentence or two about what is compared."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Write the table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([self.title, "", *("| " + " | ".join(cells) + " |" for cells in lines)])


@dataclass(frozen=True)
class Target:
    """A figure that was to be reached.

    Attributes:
        what: what was measured.
        bound: the figure to be reached.
        figure: the one that was; `None` where a measurement is missing.
        is_floor: whether the figure must be at least, and not at most, the bound.
        unit: printed after both numbers.
        note: printed after the figure.
    """

    what: str
    bound: float
    figure: float | None
    is_floor: bool = False
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """`reached`, `not reached` or `not measured`."""
        if self.figure is None:
            return "not measured"
        is_reached = self.figure >= self.bound if self.is_floor else self.figure <= self.bound
        return "reached" if is_reached else "**not reached**"

    def cells(self) -> list[str]:
        """Lay out a row of the table of targets."""
        goal = f"{'≥' if self.is_floor else '≤'} {self.bound:g}{self.unit}"
        figure = "–" if self.figure is None else f"{self.figure:.3g}{self.unit}{self.note}"
        return [self.what, goal, figure, self.verdict]


@dataclass(frozen=True)
class Report:
    """What one question was answered with."""

    title: str
    targets: Sequence[Target]
    tables: Sequence[Table]

    def markdown(self) -> str:
        """Write the report in Markdown."""
        targets = Table("Targets:", ("what", "target", "measured", ""), [target.cells() for target in self.targets])
        return "\n\n".join([f"## {self.title}", targets.markdown(), *(table.markdown() for table in self.tables)])


def number(figures: Figures, name: str) -> float | None:
    """Look up a figure; `None` if the case did not measure it."""
    value = figures.get(name)
    return float(value) if isinstance(value, int | float) else None


def ratio(a: float | None, b: float | None) -> float | None:
    """Divide two figures, if both are there."""
    return None if a is None or not b else a / b


def seconds(value: float | None) -> str:
    """Write a time."""
    if value is None:
        return "–"
    return f"{value:.3g} s" if value >= 0.1 else f"{1000 * value:.3g} ms"


def times(value: float | None) -> str:
    """Write a ratio."""
    return "–" if value is None else f"{value:.3g} ×"


def small(value: float | None) -> str:
    """Write an error or a certificate."""
    return "–" if value is None else f"{value:.1e}"


def count(value: float | None) -> str:
    """Write a whole number."""
    return "–" if value is None else f"{value:.0f}"


def decibels(value: float | None) -> str:
    """Write a peak signal-to-noise ratio."""
    return "–" if value is None else f"{value:.2f} dB"


def memory(value: float | None) -> str:
    """Write a size in bytes."""
    if not value:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


Column = tuple[str, Callable[[Figures], str]]
"""A column: its head, and the function that writes its cell from a case's figures."""


def table(title: str, first: str, outcomes: dict[str, Figures], columns: Sequence[Column]) -> Table:
    """Lay out one row a case; a case that gave no figures says why in the first cell after its name."""
    rows = []
    for name, figures in outcomes.items():
        if "failed" in figures:
            cells = [str(figures["failed"]).replace("|", "¦"), *[""] * (len(columns) - 1)]
        else:
            cells = [write(figures) for _, write in columns]
        rows.append([name, *cells])
    return Table(title, [first, *(head for head, _ in columns)], rows)


def column(head: str, name: str, write: Callable[[float | None], str]) -> Column:
    """Make a column of the figures of one name."""
    return head, lambda figures: write(number(figures, name))


def word(head: str, name: str) -> Column:
    """Make a column of the words of one name."""
    return head, lambda figures: str(figures.get(name, "–"))


def describe_machine() -> dict[str, str]:
    """Describe what the figures depend on: processor, memory, versions, and settings of the environment."""
    processors = Path("/proc/cpuinfo")
    names = [
        line for line in processors.read_text(encoding="utf-8").splitlines() if line.startswith("model name")
    ] * processors.exists()
    machine = {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine(),
        "cores": str(
            len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
        ),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            machine[package] = "not installed"
    machine["load before"] = f"{psutil.getloadavg()[0]:.1f}"
    return machine | {name: os.environ[name] for name in SETTINGS if name in os.environ}
