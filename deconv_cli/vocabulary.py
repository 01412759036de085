"""Closed lists of words, and values as they are typed: paddings, sizes, numbers, amounts of memory.

Nothing here imports torch, so that the command line can offer these words before torch is loaded.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeGuard, TypeVar

from deconv_cli.errors import UsageError

Size: TypeAlias = tuple[int, ...]
"""One whole number for each axis of space: height and width of an image, or their counterparts of a kernel."""

PaddingLike: TypeAlias = "str | int | tuple[int | tuple[int, int], ...] | list[int]"
"""`same`, `valid`, `full`, one whole number, or for each axis of space one, or those before and after."""

NUMBER = re.compile(r"\d[\d.e+-]*")
"""A number in a sentence: notes that differ in their numbers alone are of one kind."""


class InputKind(StrEnum):
    """The kind of an input, which decides its defaults."""

    TENSOR = "tensor"
    """Noise-free samples of a network's layer."""
    PICTURE = "picture"
    """A noisy part of a larger scene."""


class Light(StrEnum):
    """What a convolution acts on."""

    LINEAR = "linear"
    """Light: the tone curve of the samples is undone before, and applied again after."""
    STORED = "stored"
    """The samples as they are stored."""


class LambdaRule(StrEnum):
    """How λ is chosen from the data."""

    GCV = "gcv"
    """Robust generalized cross-validation."""
    ML = "ml"
    """The largest marginal likelihood."""
    DISCREPANCY = "discrepancy"
    """The residual is as large as the noise."""
    UPRE = "upre"
    """The least predicted risk, for noise of known size."""
    WHITENESS = "whiteness"
    """The residual is as white as it gets."""


class Convention(StrEnum):
    """The content of a kernel file."""

    CORRELATION = "correlation"
    """Taps as `torch.nn.functional.conv2d` applies them."""
    CONVOLUTION = "convolution"
    """A point-spread function of a true convolution; reversed along each axis on reading."""


class ArithmeticDType(StrEnum):
    """The precision of the arithmetic."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class OutputDType(StrEnum):
    """The sample type of a written file."""

    UINT8 = "uint8"
    UINT16 = "uint16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


class DeviceChoice(StrEnum):
    """Where the arithmetic runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


Word = TypeVar("Word", bound=StrEnum)


def parse_word(words: type[Word], text: str, name: str) -> Word:
    """Read one word of a list, or a member of it; `name` is what it is called in the error."""
    return words(check_name(words, text, name))


def check_name(names: Iterable[str], text: object, kind: str) -> str:
    """Return a name if it is in a list; else raise a `UsageError` with the list, and with the nearest name."""
    names = tuple(names)
    if not isinstance(text, str) or text not in names:
        meant = nearest_name(names, str(text))
        hint = "" if meant is None else f"; perhaps you mean {meant}"
        raise UsageError(f"{kind} must be one of {', '.join(names)}, but is '{shortened(str(text))}'{hint}.")
    return str(text)


def nearest_name(names: Iterable[str], text: str) -> str | None:
    """Find the name that a misspelled one may mean; `None` if no name is near."""
    letters = text.rstrip("0123456789")  # float16 is no misspelling of float64
    others = [name for name in names if name == letters or name.rstrip("0123456789") != letters]
    return next(iter(difflib.get_close_matches(text, others, n=1)), None)


def is_whole(found: object) -> TypeGuard[int]:
    """Return whether an object is an integer of Python or NumPy; a bool is not."""
    return isinstance(found, Integral) and not isinstance(found, bool)


def check_dimensions(dimensions: object) -> int | None:
    """Return a number of axes of space if it is 1, 2, 3 or `None`; anything else raises a `UsageError`."""
    if dimensions is None or (is_whole(dimensions) and dimensions in (1, 2, 3)):
        return None if dimensions is None else int(dimensions)
    raise UsageError(f"dimensions must be 1, 2 or 3, but is {dimensions!r}.")


def check_spacing(spacing: object) -> tuple[float, ...] | None:
    """Return a tuple of one positive number for each axis, or `None`; anything else raises a `UsageError`."""
    if spacing is None:
        return None
    numbers = spacing if isinstance(spacing, tuple | list) else ()
    are_numbers = all(isinstance(n, Real) and not isinstance(n, bool) for n in numbers)
    if numbers and are_numbers and all(0 < n < math.inf for n in numbers):
        return tuple(float(n) for n in numbers)
    raise UsageError(f"spacing must be one positive number for each axis, as 3,1,1, but is {shortened(repr(spacing))}.")


PADDING_WORDS = ("same", "valid", "full")


def parse_padding(text: str) -> PaddingLike:
    """Read `same`, `valid`, `full`, `N`, `NH,NW` or `BEFORE:AFTER,BEFORE:AFTER` as typed; else raise a `UsageError`."""
    return check_padding(parse_numbers(text))


def check_padding(padding: object) -> PaddingLike:
    """Return a padding, lists as tuples; anything else raises a `UsageError`."""
    if isinstance(padding, str) and padding in PADDING_WORDS:
        return padding
    numbers = tuple(padding) if isinstance(padding, tuple | list) else (padding,)
    sides = tuple(tuple(map(_plain, n)) if isinstance(n, tuple | list) else _plain(n) for n in numbers)
    if sides and all(_is_pad(n) or (isinstance(n, tuple) and len(n) == 2 and all(map(_is_pad, n))) for n in sides):
        return sides if isinstance(padding, tuple | list) else sides[0]  # type: ignore[return-value]
    shown = shortened(str(padding)) if isinstance(padding, str) else padding
    raise UsageError(
        f"padding must be {', '.join(PADDING_WORDS)}, a whole number or one for each axis, but is {shown!r}."
    )


def _plain(n: object) -> object:
    """Turn a whole number of any library into a plain one."""
    return int(n) if is_whole(n) else n


def _is_pad(n: object) -> bool:
    return is_whole(n) and n >= 0


def format_padding(padding: PaddingLike) -> str:
    """Write a padding as it would be typed at the prompt."""
    if not isinstance(padding, tuple | list):
        return str(padding)
    return ",".join(":".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in padding)


SPELLED_OUT = {"lam": "lambda"}
"""Settings that are called otherwise in messages and options than in code."""


def option_name(setting: str) -> str:
    """Give the option of the command line that sets a setting."""
    return "--" + SPELLED_OUT.get(setting, setting).replace("_", "-")


def as_typed(name: str, value: object) -> object:
    """Write the value of a setting as it is typed at the prompt."""
    if name == "padding":
        return format_padding(value)  # type: ignore[arg-type]
    if name == "noise" and not isinstance(value, str):
        first = value[0] if isinstance(value, tuple) else value
        return getattr(first, "source", None)
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    return repr(value) if isinstance(value, float) else value


def parse_numbers(text: str) -> Any:  # noqa: ANN401
    """Read numbers as typed: `2`, `0.5`, `2,1` for several, `1:2,3:4` for pairs; any other text stays a text."""
    parts = [tuple(_number(n) for n in part.split(":")) for part in text.split(",")]
    if any(n is None for part in parts for n in part):
        return text
    numbers = tuple(part[0] if len(part) == 1 else part for part in parts)
    return numbers[0] if len(numbers) == 1 and ":" not in text else numbers


def parse_size(text: str) -> Size:
    """Read a size as typed, `N` for signals, `H,W` for pictures, `D,H,W` for stacks; else raise a `UsageError`."""
    read = parse_numbers(text)
    size = read if isinstance(read, tuple) else (read,)
    if len(size) > 3 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise UsageError(
            f"a size must be positive whole numbers of pixels, N, H,W or D,H,W, but is '{shortened(text)}'."
        )
    return size


def format_spacing(spacing: Sequence[float]) -> str:
    """Write distances of samples in micrometers, as `0.5 × 0.1 × 0.1 µm`."""
    return f"{' × '.join(f'{distance:.4g}' for distance in spacing)} µm"


COUNTED = "for images and solving, in addition to Python and torch"
"""What `max_memory` counts, for the sentences that refuse."""

MEMORY_UNITS = {
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)},
}


AXES_BY_SHAPE = {1: 1, 2: 2, 3: 2, 4: 2, 5: 3}
"""Axes of space by the axes of a tensor, if nothing else tells: one is a signal, two to four are pictures with their
channels, five are stacks."""

MAX_SEED = 2**62
"""The largest seed that every generator of torch takes."""


def format_lambda(lam: float | tuple[float, ...]) -> str:
    """Write λ, or that of each channel."""
    return ", ".join(f"{value:g}" for value in (lam if isinstance(lam, tuple) else (lam,)))


SCHEMA = 2
"""Version of every JSON document and record; it changes where a name or a meaning changes that was released."""

LONG = 64
"""Taps along an axis above which a kernel larger than the data is refused; shorter ones cost no time."""

ROUNDING_NOISE = 12**-0.5
"""Standard deviation of rounding to whole numbers."""


def _number(text: str) -> float | None:
    try:
        return int(text) if re.fullmatch(r"\s*-?\d{1,9}\s*", text, re.ASCII) else float(text)
    except ValueError:
        return None


def name_some(names: Iterable[str], most: int = 6) -> str:
    """List the first names, and count the others."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def shortened(text: str, limit: int = 60) -> str:
    """Cut a text that would not fit into a sentence."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def parse_memory(text: str) -> int:
    """Read bytes as typed: `8GiB`, `500MB`, `1.5 GB` or a bare number, at least one; else raise a `UsageError`."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)\s*", text.lower(), re.ASCII)
    factor = MEMORY_UNITS.get(match[2] or "b") if match else None
    n_bytes = 0 if match is None or factor is None else int(float(match[1]) * factor)
    if n_bytes < 1:
        raise UsageError(
            f"an amount of memory must be like 8GiB, 500MB or a number of bytes, but is '{shortened(text)}'."
        )
    return n_bytes


@cache
def package_version(package: str) -> str:
    """Return the version of a package; its source may be run without being installed."""
    from importlib import metadata  # slow to load, and rarely needed

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def counted(n: int | str, word: str, words: str = "") -> str:
    """Write a count, a number or its digits, with its noun: `1 step`, `2 steps`; `words` is an unusual plural."""
    return f"{n} {word}" if str(n) == "1" else f"{n} {words or f'{word}s'}"


def format_percent(share: float, n_digits: int = 2) -> str:
    """Write a share as percent with `n_digits` digits: `0.0042` is `0.42 %`; a share below 1 is never `100 %`."""
    percent = 100 * share if share >= 1 else min(100 * share, 100 - 10.0 ** min(0, 2 - n_digits))
    return f"{percent:.{n_digits}g} %" if percent < 10**n_digits - 0.5 else f"{percent:.0f} %"


def format_size(size: Iterable[int]) -> str:
    """Write a size as text: `480×640`."""
    return "×".join(str(n) for n in size)


def format_memory(n_bytes: float) -> str:
    """Write a number of bytes as text, for instance `3.6 GiB`."""
    size, unit = float(n_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if size >= 1024:
            size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
