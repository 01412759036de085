"""The singular values of a convolution's symbol: the gain of each frequency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_spectrum, space_axes
from deconv_cli.operators.circulant import channels_last, phase_tables, to_float64, torus_symbol
from deconv_cli.vocabulary import Size

# Bounds on the work of one spectrum: frequencies, and frequencies times the cost of one block. A symbol is a smooth
# function of few taps, so a coarser grid of the same torus misses little of it.
MAX_FREQUENCIES = 2**19
MAX_BLOCK_OPERATIONS = 3e8
# Up to this many frequencies an FFT evaluates a symbol of one channel sooner than a search does.
MAX_PLANE = 2**23
# The search for the largest singular value starts with blocks of frequencies that reach so far: degree times angle.
FIRST_REACH = 0.5
# Relative rounding that such a search leaves room for.
ROUNDING = 1e-12
# The result of a search is kept for kernels of up to this many numbers.
MAX_REMEMBERED = 2**14
# Numbers in the tables of one step of it.
MAX_TABLE = 2**22
# Entries of blocks that a thread factors at a time, so that they stay in the cache.
MAX_ENTRIES_AT_ONCE = 2**17


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The extreme singular values of a symbol over the torus of an image, each computed at its first use.

    Attributes:
        taps: the kernel, shape `(C_out, C_in, *k)`.
        image_size: pixels of the image along each axis.
        arrange: makes such taps from the given ones, if they differ; differentiable.
    """

    taps: Tensor
    image_size: Size
    arrange: Callable[[Tensor], Tensor] = field(default=lambda taps: taps)

    @cached_property
    def sigma_max(self) -> float:
        """The largest."""
        return self._largest[0]

    @property
    def peak(self) -> Size:
        """The frequency of the largest, as coordinates on the half spectrum of the image's torus."""
        return self._largest[1]

    @cached_property
    def _largest(self) -> tuple[float, Size]:
        found = largest_singular_value(self.taps, self.image_size)
        size = synchronize.as_number(self.taps.detach().abs().sum())
        if found[0] > ROUNDING * size or size == 0:
            return found
        # A torus of a pixel or two may hold none but the frequencies that the kernel annihilates.
        larger = tuple(n + k for n, k in zip(self.image_size, self.taps.shape[2:], strict=True))
        return largest_singular_value(self.taps, larger)[0], found[1]

    @cached_property
    def sigma_min(self) -> float:
        """The smallest over `grid`; 0 where it is no larger than rounding."""
        taps = to_float64(self.taps.detach())
        smallest = synchronize.as_number(singular_values(torus_symbol(taps, self.grid)).min())
        return smallest if smallest > torch.finfo(taps.dtype).eps * self.sigma_max else 0.0

    @property
    def grid(self) -> Size:
        """The torus whose frequencies are searched for the smallest.

        It is the image's own; for more than `MAX_FREQUENCIES` or wide blocks its longest axis is halved until the work
        is bounded. The zero frequency is always kept.
        """
        return affordable_grid(self.image_size, self.taps.shape[:2])

    @property
    def condition(self) -> float:
        """σmax / σmin, infinite for a singular symbol."""
        return self.sigma_max / self.sigma_min if self.sigma_min > 0 else float("inf")


def kernel_spectrum(taps: Tensor, image_size: Size, arrange: Callable[[Tensor], Tensor] | None = None) -> Spectrum:
    """Describe the extreme singular values of a kernel's symbol on the torus of the image; see `Spectrum`."""
    return Spectrum(taps, image_size) if arrange is None else Spectrum(arrange(taps), image_size, arrange)


def largest_singular_value(taps: Tensor, torus: Size) -> tuple[float, Size]:
    """Find the largest singular value of a kernel's symbol on a torus, without evaluating every frequency.

    Let M bound σmax over all angles, and d be half the number of taps less one. At a distance δ from a frequency of
    σmax = M cos φ no frequency has more than M cos(φ − dδ): u(θ) = Re xᴴK(θ)z is a trigonometric polynomial of degree d
    with |u| ≤ M, so that u′² ≤ d²(M² − u²) (Duffin and Schaeffer, Some inequalities concerning functions of exponential
    type, Bulletin of the American Mathematical Society 43, 1937). So the search evaluates blocks of frequencies in
    their middle, and halves those that may hold a larger value.

    Gives the value and its frequency, coordinates on the half spectrum. If the symbol is so flat that one step would
    evaluate more than `MAX_FREQUENCIES` (for wide blocks `MAX_BLOCK_OPERATIONS`), that is the largest value so far.
    """
    wide = to_float64(taps.detach())
    if has_one_sign(wide):
        # No frequency exceeds the sum of the taps' sizes.
        return synchronize.as_number(wide.sum().abs()), (0,) * len(torus)
    if wide.device.type == "cpu" and wide.numel() <= MAX_REMEMBERED:  # channels share a kernel and a size
        return _remembered(wide.numpy().tobytes(), tuple(wide.shape), torus)
    return _largest_of(wide, torus)


@lru_cache(maxsize=16)
def _remembered(taps: bytes, shape: Size, torus: Size) -> tuple[float, Size]:
    return _largest_of(torch.frombuffer(bytearray(taps), dtype=torch.float64).reshape(shape), torus)


def _largest_of(wide: Tensor, torus: Size) -> tuple[float, Size]:
    plane = half_spectrum(torus)
    if min(wide.shape[:2]) == 1 and math.prod(plane) <= MAX_PLANE:
        gains = singular_values(torus_symbol(wide, torus)).flatten()
        at = synchronize.as_index(gains.argmax())
        return synchronize.as_number(gains[at]), tuple(map(int, np.unravel_index(at, plane)))
    best, peak = _search(wide, torus)
    peak = tuple(at % n for at, n in zip(peak, torus, strict=True))
    # A frequency beyond the half spectrum has its mirror image there.
    return best, peak if peak[-1] < plane[-1] else tuple(-at % n for at, n in zip(peak, torus, strict=True))


def _search(taps: Tensor, torus: Size) -> tuple[float, Size]:
    # By symmetry half the torus is enough, and one line where the symbol does not change.
    plane = half_spectrum(torus)
    steps = [math.pi * (k - 1) / n for k, n in zip(taps.shape[2:], torus, strict=True)]
    widths = [_first_width(step, length) for step, length in zip(steps, plane, strict=True)]
    firsts = [
        torch.arange(0, length if step > 0 else 1, width, device=taps.device)
        for step, length, width in zip(steps, plane, widths, strict=True)
    ]
    corners = torch.cartesian_prod(*firsts).reshape(-1, len(torus))
    ceiling = synchronize.as_number(torch.linalg.vector_norm(taps, dim=(0, 1)).sum())
    best, peak = -1.0, (0,) * len(torus)
    while len(corners) > 0:
        middles = corners + torch.tensor([width // 2 for width in widths], device=taps.device)
        values = _largest_at(taps, torus, middles)
        at = synchronize.as_index(values.argmax())
        found = synchronize.as_number(values[at])
        if found > best:
            best, peak = found, tuple(synchronize.as_index(number) for number in middles[at])
        reach = sum(step * (width // 2 + 0.5) for step, width in zip(steps, widths, strict=True))
        if reach < math.pi / 2:
            ceiling = min(ceiling, best / math.cos(reach))
        if max(widths) == 1 or ceiling <= best:
            break
        angle = torch.acos((values / ceiling).clamp_max(1)) - reach
        corners = corners[synchronize.places(ceiling * angle.clamp_min(0).cos() > (1 - ROUNDING) * best)]
        corners, widths = _halve(corners, widths)
        if len(corners) > min(MAX_FREQUENCIES, MAX_BLOCK_OPERATIONS / _block_operations(*taps.shape[:2])):
            break
    return best, peak


def _halve(corners: Tensor, widths: list[int]) -> tuple[Tensor, list[int]]:
    """Cut blocks of frequencies, given by their first ones `(n, n_axes)` and their widths, in two along each axis."""
    for axis, width in enumerate(widths):
        if width > 1:
            step = torch.zeros(len(widths), dtype=corners.dtype, device=corners.device)
            step[axis] = width // 2
            corners = torch.cat([corners, corners + step])
    return corners, [max(width // 2, 1) for width in widths]


def has_one_sign(taps: Tensor) -> bool:
    """Return whether a kernel is that of a blur: one channel, no taps of opposite signs."""
    return taps.shape[:2] == (1, 1) and (
        synchronize.holds_everywhere(taps >= 0) or synchronize.holds_everywhere(taps <= 0)
    )


def _first_width(step: float, length: int) -> int:
    """Give the largest power of two whose half reaches no further than wanted."""
    width = 1
    while step > 0 and width < length and step * width <= FIRST_REACH:
        width *= 2
    return width


def _largest_at(taps: Tensor, torus: Size, frequencies: Tensor) -> Tensor:
    """Compute σmax at frequencies `(n, n_axes)` given by their numbers, shape `(n,)`."""
    n_taps = math.prod(taps.shape[2:])
    tables = phase_tables(taps, torus, frequencies.unbind(-1))
    flat = channels_last(taps).reshape(n_taps, -1).to(tables[0].dtype)
    n_at_once = max(1, MAX_TABLE // (n_taps + flat.shape[1]))
    values = []
    for first, *others in zip(*(table.split(n_at_once) for table in tables), strict=True):
        waves = first
        for table in others:
            waves = (waves[:, :, None] * table[:, None]).flatten(1)
        values.append(singular_values((waves @ flat).unflatten(-1, taps.shape[:2])).amax(-1))
    return torch.cat(values)


def peak_gain(taps: Tensor, spectrum: Spectrum) -> Tensor:
    """Compute σmax as a differentiable function of the taps of a spectrum, at the frequency where it is attained.

    The derivative of a singular value of K(θ) is Re(uᴴ dK(θ) v), with its singular vectors u and v. The taps have the
    shape `(C_out, C_in, *k)`, or one that the spectrum's `arrange` takes.
    """
    wide = to_float64(spectrum.arrange(taps))
    waves, peak = wide, torch.tensor([spectrum.peak], device=taps.device)
    for axis, table in enumerate(phase_tables(wide, spectrum.image_size, peak.unbind(-1))):
        waves = waves * table.reshape(-1, *[1] * (wide.ndim - 3 - axis))
    symbol = waves.sum(dim=space_axes(wide.ndim - 2))
    u, _, vh = torch.linalg.svd(symbol.detach(), full_matrices=False)
    gain: Tensor = (u[:, 0].conj() @ symbol @ vh[0].conj()).real
    return gain


def singular_values(symbol: Tensor) -> Tensor:
    """Compute the singular values of blocks `(*, C_out, C_in)`, shape `(*, min(C_out, C_in))`."""
    if min(symbol.shape[-2:]) == 1:
        # As real numbers: torch's norms of complex ones are thirty times slower.
        return torch.view_as_real(symbol.resolve_conj()).square().sum(dim=(-3, -2, -1)).sqrt()[..., None]
    return factor_by_parts(lambda part: (torch.linalg.svdvals(part),), symbol.flatten(0, -3))[0].unflatten(
        0, symbol.shape[:-2]
    )


def factor_by_parts(factor: Callable[..., tuple[Tensor, ...]], *batches: Tensor) -> tuple[Tensor, ...]:
    """Factor blocks that come in batches `(F, …)`, and give batches; on a processor some blocks at a time.

    Each part is factored in a thread of its own, and as many at once as torch has threads: torch's own threads wait for
    one another at every block.
    """
    n_blocks, device = len(batches[0]), batches[0].device
    n_at_once = max(1, MAX_ENTRIES_AT_ONCE // max(1, batches[0][:1].numel())) if device.type == "cpu" else n_blocks
    n_threads = torch.get_num_threads()
    # Each thread has modes of its own.
    is_inference, is_recording = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    with single_threaded(device):
        first = factor(*(batch[:n_at_once] for batch in batches))
        if n_at_once >= n_blocks:
            return first
        results = tuple(part.new_empty(n_blocks, *part.shape[1:]) for part in first)

        def write(start: int) -> None:
            part = slice(start, start + n_at_once)
            with torch.inference_mode(is_inference), torch.set_grad_enabled(is_recording):
                found = first if start == 0 else factor(*(batch[part] for batch in batches))
                for result, values in zip(results, found, strict=True):
                    result[part] = values

        starts = range(0, n_blocks, n_at_once)
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list((pool.map if n_threads > 1 else map)(write, starts))
    return results


@contextmanager
def single_threaded(device: torch.device) -> Iterator[None]:
    """Run batched CPU factorizations in one thread: with two, torch's batched SVD was measured 50 times slower."""
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def affordable_grid(
    size: Size,
    channels: Size,
    max_frequencies: int = MAX_FREQUENCIES,
    max_block_operations: float = MAX_BLOCK_OPERATIONS,
) -> Size:
    """Halve the longest axis of a torus until all its frequencies, and the blocks there, are affordable."""
    grid = list(size)
    affordable = min(max_frequencies, max_block_operations / _block_operations(*channels))
    while math.prod(half_spectrum(tuple(grid))) > affordable and max(grid) > 2:
        longest = grid.index(max(grid))
        grid[longest] = -(-grid[longest] // 2)
    return tuple(grid)


def _block_operations(n_outputs: int, n_inputs: int) -> int:
    per_frequency = n_outputs * n_inputs * min(n_outputs, n_inputs)
    # A LAPACK call on a tiny block costs about as much as one on an 8 × 8 block.
    return per_frequency if min(n_outputs, n_inputs) == 1 else max(per_frequency, 512)
