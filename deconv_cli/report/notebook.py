"""Objects in a notebook: a picture and a short table, as HTML. The classes get there by `parts.ShownInNotebook`."""

from __future__ import annotations

from functools import singledispatch
from html import escape

from torch import Tensor

from deconv_cli.kernels.bead_psf import BeadPsf
from deconv_cli.kernels.blind.estimate import KernelEstimate
from deconv_cli.kernels.fit_kernel import KernelFit
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.report.page_pictures import ScaledImage, display_range, draw_picture
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import (
    InputKind,
    as_typed,
    counted,
    format_lambda,
    format_padding,
    format_percent,
    format_size,
)
from deconv_cli.workflows.reconstruction import Reconstruction

SIDE = 256
"""Longest side of a picture in pixels."""
LEAST_SIDE = 96
"""Smaller pictures, such as kernels, are shown as wide as this."""
MAX_WIDTH = 120
"""Characters of a value."""

View = tuple[list[tuple[str, object]], Tensor | None]
"""Names and values, and a picture `(H, W)` or `(3, H, W)` if there is one."""


def as_html(thing: object) -> str:
    """Write an object as a table with its picture to the left."""
    rows, picture = view(thing)
    lines = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{_escaped(value)}</td></tr>'
        for name, value in rows
    )
    table = f"<div><b>{escape(type(thing).__name__)}</b><table>{lines}</table></div>"
    drawn = "" if picture is None else _draw(picture, escape(repr(thing)))
    return f'<div style="display:flex;gap:1em;align-items:flex-start">{drawn}{table}</div>'


def _escaped(value: object) -> str:
    text = str(value)
    return escape(text if len(text) <= MAX_WIDTH else f"{text[: MAX_WIDTH - 1]}…")


def _draw(picture: Tensor, alt: str) -> str:
    drawn = draw_picture(ScaledImage("", picture, *display_range(picture), "", ""), SIDE)
    width = max(drawn.width, LEAST_SIDE)
    return f'<img src="{drawn.uri}" alt="{alt}" width="{width}" style="image-rendering:pixelated">'


def plane_of(image: Tensor, n_axes: int, *, is_color: bool = False) -> Tensor:
    """Take what can be drawn of an image `(*batch, C, *size)`: the first one, and of a stack the middle plane.

    Returns:
        Shape `(H, W)`, one row for a signal; or `(3, H, W)` in color.
    """
    first = image.detach().cpu()
    first = first.reshape(-1, *first.shape[-n_axes - 1 :])[0] if first.ndim > n_axes else first[None]
    if n_axes != 2:
        first = first[:, first.shape[1] // 2] if n_axes == 3 else first[:, None]
    return first if is_color and first.shape[0] == 3 else first[0]


@singledispatch
def view(thing: object) -> View:
    """Choose what is shown of an object."""
    return [("", repr(thing))], None


@view.register
def _(thing: Reconstruction) -> View:
    settings, predicted = thing.settings, thing.predicted_error
    rows: list[tuple[str, object]] = [("image", _shape(thing.image)), ("prior", settings.objective)]
    if (lam := thing.lam) is not None:
        rows.append(("λ", f"{format_lambda(lam)}: {thing.reasons.lam}"))
    rows += [("boundary", thing.boundary), ("residual", f"{format_percent(thing.residual.relative)} of the data")]
    if predicted is not None:
        rows.append(("expected error", f"{predicted.size:.3g}"))
        rows.append(("trusted", f"{format_percent(predicted.trusted_share)} of the pixels"))
    rows += [("warning", warning) for warning in thing.warnings[:2]]
    is_color = settings.defaults is InputKind.PICTURE
    return rows, plane_of(thing.image, settings.dimensions or 2, is_color=is_color)


@view.register
def _(thing: PseudoInverse) -> View:
    geometry, kernel = thing.geometry, thing.kernel
    sizes = f"{format_size(geometry.output_size)} → {format_size(geometry.image_size)}"
    rows: list[tuple[str, object]] = [("kernel", _shape(kernel.all_taps)), ("sizes", sizes)]
    rows += [("boundary", thing.settings.boundary), ("padding", format_padding(thing.settings.padding))]
    rows += [("λ", f"{thing.lam:g}"), ("penalty", thing.penalty), ("method", thing.choice.method)]
    return rows, plane_of(kernel.taps, kernel.n_axes)


@view.register
def _(thing: Kernel) -> View:
    use = "all channels alike" if thing.shared else "each channel alone" if thing.is_per_channel else "mixes channels"
    total = f"{float(thing.taps.double().sum()):.4g} over {counted(thing.taps.numel(), 'tap')}"
    return [("taps", _shape(thing.all_taps)), ("sum", total), ("use", use)], plane_of(thing.taps, thing.n_axes)


@view.register
def _(thing: KernelField) -> View:
    # The kernels side by side, as they lie in the frame.
    tiles = thing.taps.detach().cpu().movedim(1, 2).flatten(2, 3).flatten(0, 1)
    return [("places", format_size(thing.grid)), ("taps", format_size(thing.taps.shape[2:]))], tiles


@view.register
def _(thing: KernelEstimate) -> View:
    rows: list[tuple[str, object]] = [("blur", thing.text), *((p.name.lower(), p.text) for p in thing.parameters)]
    rows += [] if thing.runner_up is None else [("runner-up", thing.runner_up.text)]
    rows += [] if thing.note is None else [("note", thing.note)]
    return rows, thing.taps()


@view.register(KernelFit)
@view.register(BeadPsf)
def _(thing: KernelFit | BeadPsf) -> View:
    taps, most = (thing.psf, 3) if isinstance(thing, BeadPsf) else (thing.taps, 2)
    return [("", repr(thing))], plane_of(taps, min(taps.ndim, most))


@view.register
def _(thing: ReconstructionSettings) -> View:
    rows = [(name, as_typed(name, value)) for name, value in thing.changed.items()]
    return rows or [("", "no setting was given")], None


def _shape(values: Tensor) -> str:
    return f"{format_size(values.shape)} {str(values.dtype).removeprefix('torch.')}"
