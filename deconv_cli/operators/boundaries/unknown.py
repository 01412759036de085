"""Unknown pixels outside, as for a photograph of a part of a scene."""

from deconv_cli.operators.boundaries.rule import BoundaryRule


class UnknownBoundary(BoundaryRule):
    """Nothing is assumed: the pixels outside are estimated like those inside, and cropped: `? ? | a b c | ? ?`."""

    name = "unknown"
    description = "nothing was assumed about what lies outside the frame"
    is_unknown = True


UNKNOWN = UnknownBoundary()
