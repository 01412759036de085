"""What is asked of an inverse, in one record that is passed from the surface down to the solvers."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import Boundary, Method, PaddingLike, Penalty

MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class InversionSettings:
    """How a convolution is to be undone.

    Attributes:
        padding: how far the kernel reached outside the image.
        boundary: what lay there.
        lam: λ in ‖Ax − y‖² + λσ²max‖Lx‖²; 0 for the Moore–Penrose inverse.
        penalty: which L.
        rcond: truncate singular values up to this fraction of the largest; circular and λ = 0 only.
        method: chosen by hand, or left to `choose_method`.
        tolerance: the certificate at which an iteration stops; by default 1e-6 in float32 and 1e-10 in float64.
        max_iterations: iterations at most.
        max_memory: bytes that building and applying the inverse may take; by default what is free.

    Raises:
        UsageError: a number outside its range.
    """

    padding: PaddingLike = "same"
    boundary: Boundary = Boundary.ZERO
    lam: float = 0.0
    penalty: Penalty = Penalty.IDENTITY
    rcond: float | None = None
    method: Method = Method.AUTO
    tolerance: float | None = None
    max_iterations: int = MAX_ITERATIONS
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.padding, list):
            object.__setattr__(self, "padding", tuple(self.padding))  # settings are compared, and written into files
        for name in ("lam", "rcond", "tolerance"):
            self._take_number(name, Real, float, "a number")
        for name in ("max_iterations", "max_memory"):
            self._take_number(name, Integral, int, "a whole number")
        if not 0 <= self.lam < float("inf"):
            raise UsageError(f"lambda must be zero or a positive number, but is {self.lam}.")
        if self.rcond is not None and not 0 <= self.rcond < 1:
            raise UsageError(f"rcond must be at least 0 and below 1, but is {self.rcond}.")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance must be between 0 and 1, but is {self.tolerance}.")
        if self.max_iterations < 1:
            raise UsageError(f"max_iterations must be at least 1, but is {self.max_iterations}.")
        if self.max_memory is not None and self.max_memory < 1:
            raise UsageError(f"max_memory must be a positive number of bytes, but is {self.max_memory}.")

    def _take_number(self, name: str, kind: type, plain: type, wanted: str) -> None:
        """Turn a number of any library into a plain one; `None` stays where it is allowed."""
        value = getattr(self, name)
        if value is None and name not in ("lam", "max_iterations"):
            return
        if isinstance(value, bool) or not isinstance(value, kind):
            word = "lambda" if name == "lam" else name
            raise UsageError(f"{word} must be {wanted}, but is {value!r}.")
        object.__setattr__(self, name, plain(value))
