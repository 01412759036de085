"""Pairs of pictures, sharp and blurred, at the prompt: how they are named and read, and what is known of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.input_files import expand
from deconv_cli.commands.kernel_output import LightOption
from deconv_cli.errors import UsageError
from deconv_cli.parts import BOUNDARIES, PENALTIES
from deconv_cli.vocabulary import Size, parse_number_or_auto, shortened

if TYPE_CHECKING:
    from torch import Tensor

SizeOption = Annotated[
    str,
    typer.Option(
        "--size", metavar="H,W", help="Taps along each axis; D,H,W for stacks, N for signals.", show_default=False
    ),
]


@dataclass(frozen=True)
class PairOptions:
    """What is known of the kernel between pictures, and how they are read."""

    channels: Annotated[
        str | None,
        typer.Option(
            "--channels",
            metavar="shared|each|mix",
            help="One kernel for all channels (default), one for each, or a layer that mixes them.",
            show_default=False,
        ),
    ] = None
    boundary: Annotated[
        str,
        typer.Option(
            "--boundary",
            metavar="NAME",
            help=f"What lay outside the sharp picture: {', '.join(BOUNDARIES)}; unknown uses the samples that do not "
            "depend on it.",
        ),
    ] = "unknown"
    penalty: Annotated[
        str, typer.Option("--penalty", metavar="NAME", help=f"What the penalty keeps small: {', '.join(PENALTIES)}.")
    ] = "gradient"
    lam: Annotated[
        str, typer.Option("--lambda", metavar="auto|λ", help="Weight of the penalty; auto takes the likeliest.")
    ] = "auto"
    nonnegative: Annotated[bool, typer.Option("--nonnegative", help="No tap is below zero.")] = False
    unit_sum: Annotated[bool, typer.Option("--unit-sum", help="The taps of a kernel add up to one.")] = False
    light: LightOption = "auto"

    def choices(self) -> dict[str, Any]:
        """Give the arguments of the library."""
        weight = parse_number_or_auto(self.lam, "lambda", " or a positive number")
        return {
            "channels": self.channels or "shared",
            "boundary": self.boundary,
            "penalty": self.penalty,
            "lam": None if weight == "auto" else weight,
            "nonnegative": self.nonnegative,
            "unit_sum": self.unit_sum,
        }

    def read(self, paths: tuple[Path, ...], n_axes: int) -> tuple[tuple[Tensor, ...], str]:
        """Read pictures of one scene in that in which the blur acts; gives how that is called too.

        Args:
            paths: of the pictures; the last decides how their light is called.
            n_axes: axes of space.
        """
        from deconv_cli.commands.kernel_commands import light_of
        from deconv_cli.io import read_image

        images = [read_image(path).spanned_by(n_axes) for path in paths]
        if not all(image.is_picture for image in images):
            return tuple(image.values.double() for image in images), "in the samples as they are stored"
        chosen = [light_of(image, self.light) for image in images]
        values = [each.to_light(image.values.double()) for each, image in zip(chosen, images, strict=True)]
        return tuple(values), chosen[-1].reason


def parse_size(text: str) -> Size:
    """Read the size of a kernel: one number of taps for each of one to three axes.

    Raises:
        UsageError: it is something else.
    """
    parts = text.split(",")
    if len(parts) > 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--size must be H,W, for stacks D,H,W, for signals N, positive whole numbers, but is '{shortened(text)}'."
        )
    return tuple(map(int, parts))


def list_pairs(paths: list[Path]) -> list[tuple[Path, Path]]:
    """Match sharp and blurred files: those that are given in turn, and those of two folders by their names.

    Raises:
        UsageError: an odd number of them, or a file without its partner.
    """
    if len(paths) % 2:
        raise UsageError(
            f"sharp and blurred pictures come in pairs, but the number of files is odd: {len(paths)}; "
            f"add the missing one."
        )
    return [pair for both in zip(paths[::2], paths[1::2], strict=True) for pair in _matched(*both)]


def _matched(sharp: Path, blurred: Path) -> list[tuple[Path, Path]]:
    if not (sharp.is_dir() and blurred.is_dir()):
        return [(sharp, blurred)]
    files = [{found.place.with_suffix(""): found.path for found in expand(folder)} for folder in (sharp, blurred)]
    alone = sorted(set(files[0]) ^ set(files[1]))
    if alone:
        raise UsageError(
            f"the folders '{sharp}' and '{blurred}' should hold files of the same names, but '{alone[0]}' is in one of "
            "them alone; add its partner, or take it out."
        )
    return [(path, files[1][name]) for name, path in files[0].items()]
