"""Models of noise: its size and its spectrum.

Nothing here imports torch: a model is a setting.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from deconv_cli.errors import UsageError

FREQUENCIES = tuple(round(0.05 * k, 2) for k in range(1, 15))
"""Frequencies |θ| in cycles a pixel at which a spectrum is given: the diagonal ends at 0.707."""
_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class NoiseModel:
    """Noise of mean variance `sigma`², white and even unless a spectrum says otherwise.

    Attributes:
        sigma: root mean square over all samples, in their units; `None` if it is still to be estimated.
        spectrum: power at `FREQUENCIES`, relative to that of white noise of the same size; empty for white noise.
        is_sigma_given: whether the user knows its size; else it is an estimate.
        source: its source as typed: `white` or `auto`.

    Raises:
        UsageError: numbers that are not positive, or too few of them.
    """

    sigma: float | None = None
    spectrum: tuple[float, ...] = ()
    is_sigma_given: bool = field(default=False, compare=False)
    source: str = field(default="white", compare=False)

    def __post_init__(self) -> None:
        is_size = self.sigma is None or 0 <= self.sigma <= _LARGEST
        if not is_size or not all(isinstance(v, float | int) and 0 < v <= _LARGEST for v in self.spectrum):
            raise UsageError(
                "the size of noise must be zero or a positive number, and its spectrum must hold positive numbers."
            )
        if self.sigma is not None:
            object.__setattr__(self, "sigma", float(self.sigma))
        object.__setattr__(self, "spectrum", tuple(map(float, self.spectrum)))
        if len(self.spectrum) not in (0, len(FREQUENCIES)):
            raise UsageError(
                f"the spectrum of noise has {len(FREQUENCIES)} powers, at {FREQUENCIES[0]} to {FREQUENCIES[-1]} cycles "
                f"a pixel, but {len(self.spectrum)} were given."
            )

    @property
    def is_white(self) -> bool:
        """Whether all frequencies have the same power."""
        return not self.spectrum

    @property
    def sentence(self) -> str:
        """A description for a person."""
        size = "" if self.sigma is None else f", σ {self.sigma:.3g}"
        if self.is_white:
            return f"white{size}"
        if self.steepness < 1:
            times = f"{1 / self.steepness:.2g} times the power in fine detail, as sharpening leaves it"
        else:
            less = f"{self.steepness:.2g} times less power in fine detail than in coarse"
            times = f"{less}, as compression, smoothing or demosaicing leave it"
        return f"colored{size}: {times}"

    @property
    def steepness(self) -> float:
        """Ratio of the noise power in coarse detail to that in fine detail; 1 for white noise."""
        return 1.0 if self.is_white else self.spectrum[1] / self.spectrum[9]

    def as_record(self) -> dict[str, object]:
        """Return the numbers for JSON, with the sentence."""
        return {"sigma": self.sigma, "spectrum": list(self.spectrum), "sentence": self.sentence}


WHITE = NoiseModel()
"""White noise of unknown size."""
