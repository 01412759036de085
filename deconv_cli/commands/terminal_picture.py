"""A picture in the terminal: two pixels a letter, one above the other, in the letter's two colors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deconv_cli.commands.console import print_note

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from torch import Tensor

HALF_BLOCK = "▀"
SHADES = " ░▒▓█"
"""For terminals without colors."""
MAX_COLUMNS = 160


def show_picture(image: Tensor, *, is_color: bool, n_axes: int = 2) -> None:
    """Draw an image on the terminal that stderr is, no wider and no higher than that; else say why not.

    Args:
        image: shape `(C, *size)` or `(B, C, *size)`; of several images the first is drawn, of a stack the plane in the
            middle, of a signal a line of shades.
        is_color: three channels are red, green and blue; else the first channel is drawn in gray.
        n_axes: axes of space.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        print_note("--show draws on a terminal, and stderr is none here, so nothing was drawn")
        return
    from deconv_cli.report.page_pictures import display_range

    first = image.detach().cpu()
    first = first if first.ndim == n_axes + 1 else first[0]
    if n_axes != 2:
        first = first[:, first.shape[1] // 2] if n_axes == 3 else first[:, None]
    shown = first if is_color and first.shape[0] == 3 else first[:1]
    low, high = display_range(shown)
    lines, size = _lines(console, (shown.double() - low) / (high - low))
    for line in lines:
        console.print(line, no_wrap=True, crop=True)
    what = "" if shown.shape[0] == first.shape[0] else f"channel 1 of {first.shape[0]}, "
    print_note(
        f"drawn: {what}{first.shape[-2]}×{first.shape[-1]} pixels as {size[0]}×{size[1]}; "
        f"black is {low:.4g}, white is {high:.4g}"
    )


def _lines(console: Console, levels: Tensor) -> tuple[list[Text], tuple[int, int]]:
    """Draw levels from 0 to 1, shape `(1 or 3, H, W)`, and count the rows and columns."""
    from torch.nn import functional

    height, width = levels.shape[-2:]
    # A letter is about twice as high as it is wide: with colors it holds two square pixels.
    has_colors = console.color_system is not None and not console.no_color
    rows_a_line = 2 if has_colors else 1
    widest = min(console.width, MAX_COLUMNS, width)
    highest = max(console.height - 4, 8) * 2
    scale = min(widest / width, highest / height, 1.0)
    columns = max(int(width * scale), 1)
    rows = max(round(height * scale * rows_a_line / 2), 1)
    rows += rows % rows_a_line
    reduced = functional.adaptive_avg_pool2d(levels.nan_to_num()[None], (rows, columns))[0].clamp(0, 1)
    if has_colors:
        return _blocks((reduced * 255).round().int().expand(3, -1, -1).permute(1, 2, 0).tolist()), (rows, columns)
    return _shades((reduced.mean(0) * (len(SHADES) - 1)).round().int().tolist()), (rows, columns)


def _blocks(pixels: list[list[list[int]]]) -> list[Text]:
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    lines = []
    for above, below in zip(pixels[::2], pixels[1::2], strict=True):
        line = Text()
        for upper, lower in zip(above, below, strict=True):
            style = Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
            line.append(HALF_BLOCK, style)
        lines.append(line)
    return lines


def _shades(levels: list[list[int]]) -> list[Text]:
    from rich.text import Text

    return [Text("".join(SHADES[level] for level in line)) for line in levels]
