"""The gradient of the loss on its way back through the steps of a recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deconv_cli.gradients.tracing.code_location import CodeLocation

_FADED = 1e-6


@dataclass(frozen=True)
class TimeSeries:
    """The gradient of the loss on its way back through time.

    Attributes:
        name: the module, or the state of a hand-written loop.
        location: where it stands.
        norms: ‖∂loss/∂h_t‖ for t = 0, 1, ...
        trend: `fades`, `explodes` or `steady`, seen backwards in time.
        step: the last step, counted from the first, at which the norm is below a millionth of the largest (fades), or
            the step at which it is largest (explodes); None for steady.
    """

    name: str
    location: CodeLocation
    norms: tuple[float, ...]
    trend: str
    step: int | None

    @classmethod
    def of(cls, name: str, location: CodeLocation, norms: Sequence[float]) -> TimeSeries:
        """Read the trend off the norms."""
        largest = max(norms)
        position = norms.index(largest)
        faded = [t for t in range(position) if norms[t] < _FADED * largest]
        late = [norm for norm in norms[len(norms) // 2 :] if norm]
        if faded:
            return cls(name, location, tuple(norms), "fades", faded[-1])
        if late and largest > max(late) / _FADED:
            return cls(name, location, tuple(norms), "explodes", position)
        return cls(name, location, tuple(norms), "steady", None)
