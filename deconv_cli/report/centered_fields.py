"""Fields about a center on a page: of one axis as a line, of two as a picture, of three as two planes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deconv_cli.report.drawing import Theme, color_bar, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_PLANES = 2
"""Of a field of three axes: the one of rows and columns, and the one of planes and columns."""


@dataclass(frozen=True, eq=False)
class CenteredField:
    """Values about a center, shape `(n, ...)` with one to three axes, and what each field is called."""

    name: str
    values: Tensor


@dataclass(frozen=True)
class FieldScale:
    """How fields are drawn.

    Attributes:
        reach: from the center to either end of an axis, in its unit.
        unit: of the axes, after their direction.
        low: the value that the darkest shade stands for.
        high: likewise, the lightest.
        color_map: of matplotlib.
        label: what the values are.
    """

    reach: float
    unit: str
    low: float
    high: float
    color_map: str
    label: str


def n_panels(fields: Sequence[CenteredField]) -> int:
    """Count the panels that some fields take, side by side."""
    return len(fields) * (N_PLANES if fields[0].values.ndim == 3 else 1)


def draw_fields(figure: Figure, theme: Theme, fields: Sequence[CenteredField], scale: FieldScale) -> None:
    """Draw fields of one size side by side on an empty figure."""
    if fields[0].values.ndim == 1:
        _draw_lines(figure, theme, fields, scale)
        return
    panels = [panel for field in fields for panel in _planes(field)]
    for number, (name, direction, values) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        is_labeled = number == 1 or direction != panels[number - 2][1]
        style(axes, theme, f"across, {scale.unit}", f"{direction}, {scale.unit}" if is_labeled else "")
        extent = (-scale.reach, scale.reach, scale.reach, -scale.reach)
        image = axes.imshow(
            values.numpy(), cmap=scale.color_map, vmin=scale.low, vmax=scale.high, extent=extent, aspect="auto"
        )
        axes.set_box_aspect(1)
        axes.grid(visible=False)
        if len(fields) > 1:
            axes.set_title(name, color=theme.ink, fontsize=10)
    color_bar(figure, image, theme, scale.label)


def _draw_lines(figure: Figure, theme: Theme, fields: Sequence[CenteredField], scale: FieldScale) -> None:
    axes = figure.add_subplot()
    for field, color in zip(fields, (theme.first, theme.second), strict=False):
        places = torch.linspace(-scale.reach, scale.reach, len(field.values) + 1)
        axes.plot((places[:-1] + places[1:]).numpy() / 2, field.values.numpy(), color=color, label=field.name)
    style(axes, theme, scale.unit, scale.label)


def _planes(field: CenteredField) -> list[tuple[str, str, Tensor]]:
    """Give planes through the center, with the field's name, and the direction of their rows."""
    values = field.values
    if values.ndim == 2:
        return [(field.name, "down", values)]
    return [
        (field.name, "down", values[values.shape[0] // 2]),
        (field.name, "deep", values[:, values.shape[1] // 2]),
    ]
