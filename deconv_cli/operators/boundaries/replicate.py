"""The outermost pixels repeated."""

from torch import Tensor

from deconv_cli.operators.boundaries.rule import BoundaryRule


class ReplicateBoundary(BoundaryRule):
    """The outermost pixels go on outside: `a a | a b c | c c`."""

    name = "replicate"
    description = "its edge pixels were taken to go on outside"

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Stop at the nearest pixel inside."""
        return position.clamp(0, length - 1)


REPLICATE = ReplicateBoundary()
