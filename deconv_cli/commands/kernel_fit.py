"""`deconv kernel fit`: the kernel between pairs of sharp and blurred pictures, by least squares or another loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_note, print_warning
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.input_files import expand, refuse_clashes
from deconv_cli.commands.kernel_commands import light_of
from deconv_cli.commands.kernel_output import KernelAnswer, LightOption, write_kernel
from deconv_cli.commands.option_groups import option, optional
from deconv_cli.commands.user_code import describe_warnings, name_or_code, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.parts import BOUNDARIES, LOSSES, PENALTIES
from deconv_cli.vocabulary import SCHEMA, counted, format_percent, format_size, parse_numbers, parse_size, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.fit_kernel import KernelFit

EXAMPLE = (
    "Example: deconv kernel fit sample_images/camera.png sample_images/camera_blurred.png --size 19,19 -o fitted.npy"
)
_CUT = "the kernel extends beyond its outermost taps, so the error bars are too small; enlarge --size"


@dataclass(frozen=True)
class PairOptions:
    """How to fit the kernel between pictures, and how to read them."""

    channels: str = optional(
        "--channels shared|each|mix",
        "One kernel for all channels, one for each, or a layer that mixes them.",
        default="shared",
    )
    boundary: str = optional(
        "--boundary NAME",
        f"What lay outside the sharp picture: {', '.join(BOUNDARIES)}; unknown uses only samples that do not "
        "depend on it.",
        default="unknown",
    )
    penalty: str = optional(
        "--penalty NAME", f"What the penalty keeps small: {', '.join(PENALTIES)}.", default="gradient"
    )
    lam: str = optional("--lambda auto|λ", "Weight of the penalty; auto chooses the most likely.", default="auto")
    nonnegative: bool = optional("--nonnegative", "Allow no negative taps.", default=False)
    unit_sum: bool = optional("--unit-sum", "Make the taps of a kernel add up to one.", default=False)
    light: LightOption = "auto"

    def choices(self) -> dict[str, Any]:
        """List the arguments of the library's `fit_kernel`."""
        weight = parse_numbers(self.lam)
        if weight != "auto" and not isinstance(weight, int | float):
            raise UsageError(f"--lambda must be auto or a positive number, but is '{shortened(self.lam)}'.")
        named = {name: value for name, value in vars(self).items() if name != "light"}
        return named | {"lam": None if weight == "auto" else weight}

    def in_light(self, images: Sequence[ImageFile]) -> tuple[tuple[Tensor, ...], str]:
        """Return pictures of one scene in the light that the blur acts on, and the name of the light of the last."""
        if not all(image.is_picture for image in images):
            return tuple(image.values.double() for image in images), "in the samples as they are stored"
        chosen = [light_of(image, self.light) for image in images]
        values = [each.to_light(image.values.double()) for each, image in zip(chosen, images, strict=True)]
        return tuple(values), chosen[-1].reason


def fit(
    pairs: Annotated[
        list[Path],
        typer.Argument(
            metavar="SHARP BLURRED",
            help="A sharp and a blurred picture or tensor of one scene; more pairs may follow. Two folders are "
            "matched by file names.",
        ),
    ],
    size: Annotated[str, option("--size N|H,W", "Taps along each axis; D,H,W for stacks.")],
    options: PairOptions,
    answer: KernelAnswer,
    errors: Path | None = optional("--errors FILE", "Write the error bar of every tap: one standard deviation."),
    loss: str = optional(
        "--loss NAME|FILE.py:FUNCTION",
        f"What to minimize: {', '.join(LOSSES)} (huber:2.5 is linear beyond 2.5, in units of the samples), or a "
        "function of a prediction and the data in your own file, whose code is run. Only the squared loss gives "
        "error bars.",
        default="squared",
    ),
) -> None:
    """Fit the kernel that blurred sharp pictures, with an error bar for every tap."""
    from deconv_cli.io import read_image
    from deconv_cli.kernels.fit_kernel import fit_kernel

    named, taps_size = _list_pairs(pairs), parse_size(size)
    read_once = lru_cache(maxsize=1)(read_image)
    if len(taps_size) == 1:  # holds for all axes of a picture; other arrays, whose axes are unknown, are signals
        image = read_once(named[0][0])
        taps_size *= image.dimensions if image.is_picture else 1
    n_axes, choices = len(taps_size), options.choices()
    answer.check(named[0][0], errors, is_picture=n_axes > 1 and options.channels != "mix")
    refuse_clashes([], [path for pair in named for path in pair], [answer.output, errors])
    if errors is not None and loss != "squared":
        raise UsageError(f"--errors writes the error bars of the squared loss, but --loss is {loss}; leave one out.")
    read = [options.in_light([read_once(path).spanned_by(n_axes) for path in pair]) for pair in named]
    both = [(sharp, blurred) for (sharp, blurred), _ in read]
    with running_user_code(is_silent=True) as (_, caught):
        found = fit_kernel(both, taps_size, **choices, loss=name_or_code(loss, LOSSES, "--loss"))
    doubts, is_cut = found.doubts(n_axes), found.is_cut(n_axes)
    notes = () if doubts else found.notes(n_axes)
    light = read[0][1]
    record = {
        "command": "kernel fit",
        "is_cut": is_cut,
        "doubts": list(doubts),
        "notes": list(notes),
        "input": [str(path) for pair in named for path in pair],
        "light": light,
        **{name: value for name, value in choices.items() if name != "lam"},
        "loss": loss,
        **_describe(found),
    }
    rows, lines = _rows(found, light, loss), describe_warnings(caught)
    answer.give(str(named[0][1]), record, rows, lines, taps=found.taps, n_axes=n_axes)
    if errors is not None and found.errors is not None:
        write_kernel(errors, found.errors, {"schema": SCHEMA, **record}, n_axes)
    for doubt in doubts or [_CUT] * is_cut:
        print_warning(doubt)
    for note in notes:
        print_note(note)
    if doubts:
        raise typer.Exit(ExitCode.UNTRUSTWORTHY)


def _describe(found: KernelFit) -> dict[str, Any]:
    errors = found.errors
    return {
        "shape": list(found.taps.shape),
        "sum": float(found.taps.sum()),
        "lambda": list(found.lam),
        "noise_sigma": list(found.sigma),
        "residual": found.residual,
        "held_out_residual": found.held_out if math.isfinite(found.held_out) else None,
        "held_out_unexplained": found.unexplained if math.isfinite(found.unexplained) else None,
        "samples": found.n_data,
        "effective_taps": found.n_effective,
        "certificate": found.certificate,
        "error": None
        if errors is None
        else {
            "median": float(errors.median()),
            "largest": float(errors.max()),
            "relative": float(errors.norm() / found.taps.norm()),
        },
    }


def _rows(found: KernelFit, light: str, loss: str) -> list[tuple[str, str]]:
    shape, residual = format_size(found.taps.shape), f"{format_percent(found.residual, 3)} of the data"
    if math.isfinite(found.held_out):
        residual += f", {format_percent(found.held_out, 3)} where they were held out"
    if found.errors is None:
        how = ("loss", f"{loss}, changed by {found.certificate:.1g} in the last round")
    else:
        bars = f"± {float(found.errors.median()):.2g} in the median, {float(found.errors.max()):.2g} at most"
        how = ("error bars", bars)
    return [
        ("taps", f"{shape}, sum {float(found.taps.sum()):.6g}, largest {float(found.taps.max()):.4g}"),
        how,
        ("determined", f"{found.n_effective:.0f} of {found.taps.numel()} taps, by {counted(found.n_data, 'sample')}"),
        ("noise", f"σ {', '.join(f'{value:.3g}' for value in found.sigma)}"),
        ("residual", residual),
        ("λ", f"{', '.join(f'{value:.2g}' for value in found.lam)}: the likeliest"),
        ("light", light),
    ]


def _list_pairs(paths: list[Path]) -> list[tuple[Path, Path]]:
    """Match sharp and blurred files: files by their order, and those of two folders by their names."""
    if len(paths) % 2:
        raise UsageError(
            f"sharp and blurred pictures must come in pairs, but there are {len(paths)} of them; add the missing one."
        )
    return [pair for both in zip(paths[::2], paths[1::2], strict=True) for pair in _matched(*both)]


def _matched(sharp: Path, blurred: Path) -> list[tuple[Path, Path]]:
    if sharp == blurred:
        raise UsageError(f"'{sharp}' is both the sharp and the blurred picture; give two different files.")
    if not (sharp.is_dir() and blurred.is_dir()):
        return [(sharp, blurred)]
    files = [{found.place.with_suffix(""): found.path for found in expand(folder)} for folder in (sharp, blurred)]
    alone = sorted(set(files[0]) ^ set(files[1]))
    if alone:
        raise UsageError(
            f"the folders '{sharp}' and '{blurred}' should hold files of the same names, but only one of them has "
            f"'{alone[0]}'; add its partner, or remove it."
        )
    return [(path, files[1][name]) for name, path in files[0].items()]
