"""`deconv demo`: blur a picture, find its kernel, restore it and write a page, by commands that anybody can repeat."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deconv_cli.commands.console import print_answer
from deconv_cli.commands.option_groups import ForceOption, QuietOption, optional
from deconv_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = "Example: deconv demo -o deconv-demo"
SIZE = (256, 384)
"""Height and width of the picture."""
RADII = (4.0, 100.0)
"""Of the disks, in pixels."""
STAR = (0.5, 0.7, 90.0)
"""Place of the star's center, in parts of height and width, and its radius in pixels."""
N_SPOKES = 24
COVERED = 0.995
"""Share of the picture after which no more disks are drawn."""

SHARP, BLURRED, RESTORED, PAGE = "sharp.png", "blurred.png", "restored.png", "restored.html"
STEPS = (
    (
        "Blur the picture as a lens out of focus does, and add noise:",
        ("forward", SHARP, "--kernel=disk:3.5", "--boundary=reflect", "--noise=gaussian:1", "-o", BLURRED),
    ),
    ("Find the blur in the blurred picture alone:", ("kernel", "estimate", BLURRED)),
    (
        "Undo it, compare the result with the sharp picture, and write a page that shows both:",
        ("invert", BLURRED, "--kernel=estimate", f"--truth={SHARP}", f"--report={PAGE}", "-o", RESTORED),
    ),
)
"""What is done, and the words after `deconv`; names of files lie in the folder of the demonstration."""


def demo(
    invocation: typer.Context,
    output: Path = optional(
        "--output -o FOLDER", "Where to write the pictures and the page.", default=Path("deconv-demo")
    ),
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show in a minute what deconv does: blur a picture, find the blur, undo it, and write a page."""
    from deconv_cli.io import StoredImage
    from deconv_cli.io.atomic import make_parents, write_atomically
    from deconv_cli.io.codec import codec_of_suffix

    files = {name: output / name for name in (SHARP, BLURRED, RESTORED, PAGE)}
    existing = [str(path) for path in files.values() if path.exists()]
    if existing and not force:
        raise UsageError(f"'{existing[0]}' exists; choose another folder with --output, or overwrite with --force.")
    make_parents(files[SHARP])
    codec, image = codec_of_suffix(files[SHARP]), StoredImage(draw_scene().movedim(0, -1).contiguous().numpy(), "YXS")
    write_atomically(files[SHARP], lambda path: codec.write(path, image), lambda path: None)
    for sentence, words in STEPS:
        placed = [_placed(word, files) for word in words] + (["--force"] if force and "-o" in words else [])
        if not quiet:
            typer.echo(f"\n{sentence}\n$ {shlex.join(['deconv', *placed])}", err=True)
        code = invocation.find_root().command.main(
            [*placed, *(["--quiet"] if quiet else [])], prog_name="deconv", standalone_mode=False
        )
        if code:
            raise typer.Exit(code)
    if not quiet:
        typer.echo("\nThe page opens by a double click:", err=True)
    print_answer(str(files[PAGE]))


def _placed(word: str, files: dict[str, Path]) -> str:
    """Replace a file name in a word of the command by its path."""
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{files[value]}" if value in files else word


def draw_scene() -> Tensor:
    """Draw overlapping disks, which have the spectrum of photographs, and a star, which has detail of every scale.

    Source: A. B. Lee, D. Mumford and J. Huang, Occlusion models for natural images, International Journal of Computer
    Vision 41, 2001, section 3.

    Returns:
        Shape `(3, H, W)`, uint8, sRGB.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    height, width = SIZE
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    image, is_empty = torch.full((3, height, width), 0.5), torch.ones(height, width, dtype=torch.bool)
    # From front to back: a disk fills what is still empty.
    while float(is_empty.float().mean()) > 1 - COVERED:
        place = torch.rand(3, generator=generator) * torch.tensor([height, width, 1.0])
        y, x, part = place.tolist()
        radius = (part / RADII[0] ** 2 + (1 - part) / RADII[1] ** 2) ** -0.5  # their number falls as 1 / radius³
        color = torch.rand(3, generator=generator) * 0.4
        color = color + 0.5 * color.mean() + 0.1
        top, left = max(int(y - radius), 0), max(int(x - radius), 0)
        box = (slice(top, int(y + radius) + 2), slice(left, int(x + radius) + 2))
        is_new = is_empty[box] & ((rows[box[0]] - y) ** 2 + (columns[box[1]] - x) ** 2 <= radius**2)
        image[(slice(None), *box)][:, is_new] = color[:, None]
        is_empty[box] &= ~is_new
    y, x = rows - STAR[0] * height, columns - STAR[1] * width
    spokes = torch.where(torch.sin(N_SPOKES * torch.atan2(y, x)) > 0, 0.9, 0.1)
    image = torch.where(y**2 + x**2 < STAR[2] ** 2, spokes, image)
    return (255 * image).round().to(torch.uint8)
