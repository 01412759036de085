"""Find which family of kernels blurred a picture, with which numbers, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.blind.polar_spectrum import PolarGrid, PolarSpectrum, polar_grid
from deconv_cli.kernels.blind.spectrum_fit import fit_spectrum
from deconv_cli.kernels.sources.formula import BlurFamily, Numbers, geometric, make_kernel, sample_with_margin
from deconv_cli.parts import KERNEL_SOURCES, ShownInNotebook
from deconv_cli.vocabulary import check_name

NO_BLUR = "none"
LEAST_EVIDENCE = 12.0
"""A blur is reported if its likelihood exceeds that of no blur by at least this, in logarithms."""
LEAST_AREA = 8.0
"""Pixels that a kernel covers, 1 / Σk²: lenses and resampling leave about as much in a sharp picture."""
_LARGEST_REACH = 32.0
_N_ROUNDS = 5
_N_WHOLE_FITS = 12
"""Kernels of a family whose fits to the end are compared."""
_IMPOSSIBLE = 1e9
_TOO_FAR = 40.0
"""A family whose coarse fit is so much worse than the best is not refined."""
_WITHOUT_ZEROS = ("gaussian", "moffat", "airy")
_ERROR_SCALE, _ERROR_SCALE_WITHOUT_ZEROS = 1.1, 2.2
"""Factors on the errors that the curvature gives, so that they hold the truth in 68 % of the cases. What the model of
the scene misses counts as a part of a kernel whose spectrum has no zeros. From 16 photographs under 7 kernels."""
_RATIOS = geometric(1 / 3, 3.0, 1.1)
"""Sizes of a kernel in a part of the picture, as multiples of that on the whole."""
_OUT_OF_FOCUS = 4.0
"""Price of a wider kernel in one part of the picture, in logarithms of likelihood."""
_WIDER = 1.15
"""The kernel of the sharpest parts is taken if that of the whole picture is wider by at least this factor."""
_CLOSE = 3.0
"""Two kernels explain a picture about as well if their likelihoods differ by less, in logarithms."""
_LENGTHS = ("RADIUS", "SIGMA", "LENGTH", "FWHM")
"""Parameters that grow with the size of a kernel."""


@dataclass(frozen=True)
class Parameter:
    """A number of a kernel, as found.

    Attributes:
        name: such as `RADIUS`.
        value: in pixels or degrees, or a count.
        error: standard error, in the same unit; 0 for a count, or if the kernel is doubted.
        period: of an angle, in degrees: a kernel that is turned by it looks the same; 0 for other parameters.
    """

    name: str
    value: float
    error: float
    period: float = 0.0

    @property
    def text(self) -> str:
        """The value with its error."""
        return f"{self.value:.4g}" + (f" ± {self.error:.2g}" if self.error else "")


@dataclass(frozen=True)
class Candidate:
    """The best numbers of a kernel source, and minus the logarithm of likelihood times prior, up to a constant."""

    family: str
    numbers: Numbers
    misfit: float

    @property
    def text(self) -> str:
        """The kernel as it is typed, such as `disk:5.6`."""
        return kernel_text(self.family, self.numbers)

    @property
    def length(self) -> float:
        """Its size in pixels: the first of its numbers that grows with it."""
        names = KERNEL_SOURCES[self.family].parameters
        return next(n for name, n in zip(names, self.numbers, strict=True) if name in _LENGTHS)


@dataclass(frozen=True, eq=False)
class KernelEstimate(ShownInNotebook):
    """What the search found.

    Attributes:
        found: whether the picture is blurred.
        family: the kernel source that fits best, or `none`.
        parameters: its numbers, each with its standard error.
        candidates: the best of each family, the likeliest first.
        evidence: logarithm of the likelihood of the best blur over that of no blur.
        doubt: why the kernel is probably wrong, as a sentence without its full stop; `None` without a reason.
        saturated: the share of saturated pixels.
    """

    found: bool
    family: str
    parameters: tuple[Parameter, ...]
    candidates: tuple[Candidate, ...]
    evidence: float
    doubt: str | None = None
    saturated: float = 0.0

    def __repr__(self) -> str:
        """Describe it in one line."""
        return f"KernelEstimate({self.text})"

    def without_errors(self) -> KernelEstimate:
        """Leave out the standard errors, which are those of the right family."""
        return replace(self, parameters=tuple(replace(p, error=0.0) for p in self.parameters))

    @property
    def whole(self) -> Candidate | None:
        """The kernel that fits the whole picture, if that of its sharpest parts was taken instead; else `None`."""
        if not self.found:
            return None
        fitted = next(c for c in self.candidates if c.family == self.family)
        own = Candidate(self.family, tuple(p.value for p in self.parameters), fitted.misfit)
        return fitted if fitted.length > own.length else None

    @property
    def note(self) -> str | None:
        """Why the kernel of the sharpest parts was taken, as a sentence without its full stop; else `None`."""
        if self.whole is None:
            return None
        return (
            f"the blur is not the same everywhere: {self.whole.text} fits the whole picture, but {self.text} fits its "
            f"sharpest parts; the other parts may be out of focus, so {self.text} was taken"
        )

    @property
    def slight(self) -> Candidate | None:
        """A blur that fits far better than none, but is hardly wider than that of a sharp picture; else `None`."""
        is_slight = not self.found and self.evidence >= LEAST_EVIDENCE
        return self.candidates[0] if is_slight else None

    @property
    def rival(self) -> Candidate | None:
        """The next best blur, if it explains the picture about as well; else `None`."""
        other, ratio = self.runner_up, self.log_likelihood_ratio
        if not self.found or other is None or other.family == NO_BLUR or ratio is None:
            return None
        return other if ratio < _CLOSE else None

    @property
    def text(self) -> str:
        """The kernel as it is typed, such as `disk:5.6`; `none` where none was found."""
        return kernel_text(self.family, tuple(p.value for p in self.parameters))

    @property
    def runner_up(self) -> Candidate | None:
        """The likeliest candidate of another family; `None` where none was tried."""
        return next((c for c in self.candidates if c.family != self.family), None)

    @property
    def log_likelihood_ratio(self) -> float | None:
        """How much likelier the estimate is than the runner-up, in logarithms; `None` if its size is that of parts."""
        if self.whole is not None:
            return None
        own, other = next(c for c in self.candidates if c.family == self.family), self.runner_up
        return None if other is None else other.misfit - own.misfit

    def taps(self) -> Tensor:
        """Make the kernel, shape `(kH, kW)`, float64, sum 1; a single tap where no blur was found."""
        return torch.ones(1, 1, dtype=torch.float64) if not self.found else make_kernel(self.text)


def kernel_text(family: str, numbers: Numbers) -> str:
    """Write a kernel as it is typed at the prompt."""
    return family if not numbers else f"{family}:" + "@".join(f"{n:.5g}" for n in numbers)


def family_names() -> tuple[str, ...]:
    """List the kernel sources whose numbers can be found from a picture."""
    return tuple(name for name in KERNEL_SOURCES if KERNEL_SOURCES[name].family is not None)


def estimate_family(spectrum: PolarSpectrum, families: Sequence[str] | None = None) -> KernelEstimate:
    """Find the kernel that blurred a picture, by its spectrum in linear light.

    The families are the names of kernel sources to choose from; by default all that have one.

    Raises:
        UsageError: an unknown name.
    """
    if families is not None and not isinstance(families, Iterable):
        raise UsageError(f"families must be names of kernel sources, but is {families!r}.")
    given = (families,) if isinstance(families, str) else tuple(families or ())
    wanted = tuple(check_name(family_names(), name, "a family") for name in given) or family_names()
    search = _Search(spectrum)
    none = search.none
    found: dict[str, Candidate] = {}
    # Families in order of their penalty: some start from the best numbers of an earlier one.
    for name in sorted(family_names(), key=lambda n: _family(n).log_penalty):
        if starts := search.starts(name, {n: c.numbers for n, c in found.items()}):
            candidate = search.best_of(name, starts)
            best = min(c.misfit for c in [candidate, *found.values()])
            found[name] = search.refine(candidate) if candidate.misfit < best + _TOO_FAR else candidate
    pool = [candidate for name, candidate in found.items() if name in wanted]
    if not pool:
        return KernelEstimate(False, NO_BLUR, (), (none,), 0.0)
    candidates = sorted([none, *pool], key=lambda c: c.misfit)
    top = next(c for c in candidates if c is not none)
    evidence = none.misfit - top.misfit
    if evidence < LEAST_EVIDENCE or _area(top) < LEAST_AREA:
        return KernelEstimate(False, NO_BLUR, (), tuple(candidates), evidence)
    return KernelEstimate(True, top.family, search.parameters(top), tuple(candidates), evidence)


def estimate_near(spectrum: PolarSpectrum, candidate: Candidate) -> KernelEstimate:
    """Find the kernel of a part of a picture near the one that was found for all of it, in the same family."""
    search = _Search(spectrum)
    none = search.none
    near = search.refine(search.best_of(candidate.family, [_scaled(candidate, ratio) for ratio in _RATIOS]))
    evidence = none.misfit - near.misfit
    if evidence < LEAST_EVIDENCE:
        return KernelEstimate(False, NO_BLUR, (), (none, near), evidence)
    return KernelEstimate(True, near.family, search.parameters(near), (near, none), evidence)


def compare_parts(found: KernelEstimate, parts: Iterable[PolarSpectrum]) -> KernelEstimate:
    """Reject a kernel that the parts of its picture contradict, and take its size from the sharpest of them.

    Parallel ridges in one part look like motion, but only there. A part that is out of focus is blurrier than the
    kernel alone makes it. A kernel whose spectrum has zeros leaves them in a picture, and no scene does. What looks
    like a kernel without zeros may be a soft scene, so its size is estimated again.
    """
    if not found.found:
        return found
    whole = next(c for c in found.candidates if c.family == found.family)
    searches = [_Search(part) for part in parts]
    if not searches:
        return found
    evidence = sum(search.none.misfit - search.misfits(whole.family, [whole.numbers])[0] for search in searches)
    if evidence < 0:
        return replace(found, found=False, family=NO_BLUR, parameters=())
    if found.family not in _WITHOUT_ZEROS:
        return found
    numbers = [_scaled(whole, ratio) for ratio in _RATIOS]
    fits = [search.misfits(whole.family, numbers) for search in searches]
    misfits = torch.tensor(fits, dtype=torch.float64)
    best_of_wider = misfits.flip(1).cummin(1).values.flip(1)
    total = misfits.minimum(best_of_wider + _OUT_OF_FOCUS).sum(0).tolist()
    k = min(range(1, len(total) - 1), key=total.__getitem__)
    left, middle, right = total[k - 1 : k + 2]
    step = math.log(_RATIOS[1] / _RATIOS[0])
    ratio = _RATIOS[k] * math.exp(step * _vertex(left, middle, right))
    if ratio * _WIDER > 1:
        return found
    best = Candidate(whole.family, _scaled(whole, ratio), whole.misfit)
    if _area(best) < LEAST_AREA:
        return replace(found, found=False, family=NO_BLUR, parameters=())
    error = _ERROR_SCALE_WITHOUT_ZEROS * step / math.sqrt(max(left + right - 2 * middle, 1e-2))
    parameters = (
        replace(p, value=n, error=error * n if p.name in _LENGTHS else p.error)
        for p, n in zip(found.parameters, best.numbers, strict=True)
    )
    return replace(found, parameters=tuple(parameters))


class _Search:
    """Misfits of kernels to one spectrum."""

    def __init__(self, spectrum: PolarSpectrum) -> None:
        self._spectrum = spectrum
        self._reach = min(_LARGEST_REACH, spectrum.grid.side / 8)
        self.none = Candidate(NO_BLUR, (), self.misfits(NO_BLUR, [()])[0])

    def misfits(self, family: str, numbers: Sequence[Numbers], *, is_coarse: bool = False) -> list[float]:
        """Give the misfit of each kernel of a family; a very large one where there is no such kernel."""
        gains = [_gain(self._spectrum.grid.side, family, n) for n in numbers]
        possible = [gain for gain in gains if gain is not None]
        if not possible:
            return [_IMPOSSIBLE] * len(gains)
        log_penalty = 0.0 if family == NO_BLUR else _family(family).log_penalty
        misfits = iter(fit_spectrum(self._spectrum, torch.stack(possible), is_coarse=is_coarse).tolist())
        return [_IMPOSSIBLE if gain is None else next(misfits) + log_penalty for gain in gains]

    def starts(self, family: str, best: dict[str, Numbers]) -> list[Numbers]:
        return _family(family).starts(self._reach, best)

    def best_of(self, family: str, starts: Sequence[Numbers]) -> Candidate:
        """Take the likeliest of many kernels; fits that ended early say which are worth another to the end."""
        if len(starts) > _N_WHOLE_FITS:
            coarse = self.misfits(family, starts, is_coarse=True)
            order = sorted(range(len(starts)), key=coarse.__getitem__)
            starts = [starts[i] for i in order[:_N_WHOLE_FITS]]
        misfits = self.misfits(family, starts)
        best = min(range(len(starts)), key=misfits.__getitem__)
        return Candidate(family, starts[best], misfits[best])

    def refine(self, candidate: Candidate) -> Candidate:
        """Descend by parabolas along each number, with steps that halve."""
        steps = _family(candidate.family).steps(candidate.numbers)
        axes = [i for i, step in enumerate(steps) if step]
        scale = 0.5
        for _ in range(_N_ROUNDS):
            points = [_moved(candidate, {i: s * scale * steps[i]}) for i in axes for s in (-1, 1)]
            values = self.misfits(candidate.family, points)
            shift = {
                i: scale * steps[i] * _vertex(values[2 * k], candidate.misfit, values[2 * k + 1])
                for k, i in enumerate(axes)
            }
            points.append(_moved(candidate, shift))
            values.append(self.misfits(candidate.family, points[-1:])[0])
            j = min(range(len(points)), key=values.__getitem__)
            if values[j] < candidate.misfit:
                candidate = Candidate(candidate.family, points[j], values[j])
            scale /= 2
        return candidate

    def parameters(self, candidate: Candidate) -> tuple[Parameter, ...]:
        """Give each number with the error that the curvature of the misfit tells."""
        names = KERNEL_SOURCES[candidate.family].parameters
        steps = _family(candidate.family).steps(candidate.numbers)
        axes = [i for i, step in enumerate(steps) if step]
        h = {i: 0.3 * steps[i] for i in axes}
        hessian = torch.zeros(len(axes), len(axes), dtype=torch.float64)
        for a, i in enumerate(axes):
            for b, j in enumerate(axes[: a + 1]):
                corners = [
                    _moved(candidate, {i: s * h[i]} if i == j else {i: s * h[i], j: t * h[j]})
                    for s, t in ((1, 1), (-1, -1), (1, -1), (-1, 1))
                ]
                m = self.misfits(candidate.family, corners[:2] if i == j else corners)
                value = m[0] + m[1] - 2 * candidate.misfit if i == j else (m[0] + m[1] - m[2] - m[3]) / 4
                hessian[a, b] = hessian[b, a] = value
        eigenvalues, vectors = torch.linalg.eigh(hessian)
        variances = (vectors.square() / eigenvalues.clamp_min(1e-2)).sum(1)
        period = _family(candidate.family).period(candidate.numbers)
        scale = _ERROR_SCALE_WITHOUT_ZEROS if candidate.family in _WITHOUT_ZEROS else _ERROR_SCALE
        errors = {i: scale * h[i] * float(variances[a].sqrt()) for a, i in enumerate(axes)}
        return tuple(
            Parameter(
                name,
                value % period if name == "ANGLE" else value,
                errors.get(i, 0.0) * (1 if name == "ANGLE" else value),
                period if name == "ANGLE" else 0.0,
            )
            for i, (name, value) in enumerate(zip(names, candidate.numbers, strict=True))
        )


def _family(name: str) -> BlurFamily:
    family: BlurFamily = KERNEL_SOURCES[name].family
    return family


@lru_cache(maxsize=4096)
def _gain(side: int, family: str, numbers: Numbers) -> Tensor | None:
    grid: PolarGrid = polar_grid(side)
    if family == NO_BLUR:
        return torch.ones_like(grid.frequency)
    try:
        taps = sample_with_margin(KERNEL_SOURCES[family].make(*numbers))
    except UsageError:  # numbers that the search may come to, but that no kernel has
        return None
    # Faint wings that reach beyond the pieces are cut.
    rows, columns = (max(0, n - side + 1) // 2 for n in taps.shape)
    return grid.gain(taps[rows : taps.shape[0] - rows, columns : taps.shape[1] - columns])


def _scaled(candidate: Candidate, ratio: float) -> Numbers:
    """Make a kernel larger or smaller."""
    names = KERNEL_SOURCES[candidate.family].parameters
    return _moved(candidate, {i: ratio - 1 for i, name in enumerate(names) if name in _LENGTHS})


def _moved(candidate: Candidate, shift: dict[int, float]) -> Numbers:
    names = KERNEL_SOURCES[candidate.family].parameters
    moved = list(candidate.numbers)
    for i, by in shift.items():
        moved[i] = moved[i] + by if names[i] == "ANGLE" else moved[i] * (1 + by)
    return tuple(moved)


def _vertex(left: float, middle: float, right: float) -> float:
    """Return the minimum of the parabola through three values, in steps from the middle, within one step."""
    curvature = left + right - 2 * middle
    slope = (right - left) / 2
    if curvature <= 0:
        return -1.0 if slope > 0 else 1.0
    return min(1.0, max(-1.0, -slope / curvature))


def _area(candidate: Candidate) -> float:
    return 1 / float(sample_with_margin(KERNEL_SOURCES[candidate.family].make(*candidate.numbers)).square().sum())
