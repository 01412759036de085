"""The options that commands share, worded once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import ArithmeticDType, Convention, DeviceChoice, OutputDType, check_name


def one_of(kind: str, names: Iterable[str]) -> dict[str, Any]:
    """Give what makes an option take one of several names, and list them in its help.

    Args:
        kind: what the name is of, in the message.
        names: those that there are.
    """
    listed = tuple(names)

    def parse(text: str) -> str:
        try:
            return check_name(listed, text, kind)
        except UsageError as error:
            raise typer.BadParameter(str(error)) from error

    return {"parser": parse, "metavar": "|".join(listed), "autocompletion": lambda: list(listed)}


InputsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="INPUT...", help="Pictures, tensors, or folders of them.", show_default=False),
]
_KERNEL = typer.Option(
    "--kernel",
    "-k",
    metavar="FILE",
    help="The kernel: a tensor or state dict (.pt, .safetensors, .npy, .npz), or a picture of a point-spread function.",
    show_default=False,
)
KernelOption = Annotated[Path, _KERNEL]
OptionalKernelOption = Annotated[Path | None, _KERNEL]
LayerOption = Annotated[
    str | None, typer.Option("--layer", metavar="NAME", help="Which layer of a state dict holds the kernel.")
]
ConventionOption = Annotated[
    Convention | None,
    typer.Option(
        "--convention",
        help="What the kernel file holds: taps as conv2d applies them (default for tensors), or a point-spread "
        "function of a true convolution (default for pictures), which is flipped.",
        show_default=False,
    ),
]
NormalizeOption = Annotated[
    bool | None,
    typer.Option(
        "--unit-sum/--keep-sum",
        help="Divide the kernel by its sum, or take it as it is. Default: only pictures of whole numbers are divided.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    str | None,  # not a path, which would forget the slash that marks a folder
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|DIR",
        help="Where to write; the suffix decides the format. A folder takes one file for each input.",
        show_default=False,
    ),
]
OutputDTypeOption = Annotated[
    OutputDType | None,
    typer.Option(
        "--output-dtype",
        help="Sample type of the file. Default: float32, or the input's own whole numbers where the format holds "
        "no other.",
        show_default=False,
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing files.")]
AxesOption = Annotated[
    str | None,
    typer.Option("--axes", metavar="LETTERS", help="Read the input's axes as these, for example CYX or ZYX."),
]
TensorOption = Annotated[
    str | None, typer.Option("--tensor", metavar="NAME", help="Which tensor of an input file that holds several.")
]
SeriesOption = Annotated[
    int | None, typer.Option("--series", metavar="N", help="Which image series of a TIFF that holds several.", min=0)
]
DeviceOption = Annotated[DeviceChoice, typer.Option("--device", help="Where to compute.")]
DTypeOption = Annotated[
    ArithmeticDType | None,
    typer.Option(
        "--dtype",
        help="Precision of the arithmetic. Default: float64 for float64 files, else float32.",
        show_default=False,
    ),
]
KernelDTypeOption = Annotated[
    ArithmeticDType | None,
    typer.Option(
        "--dtype",
        help="Precision of the arithmetic. Default: float64 for float64 kernels, else float32.",
        show_default=False,
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Memory that the solution may take, such as 8GiB or 500MB. Default: what is free.",
        show_default=False,
    ),
]
ShowOption = Annotated[bool, typer.Option("--show", help="Draw the picture in the terminal (on stderr).")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no table and no notes.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more of what happens on the way.")]
