"""`disk-motion:RADIUS@LENGTH@ANGLE`: out of focus and moved along a straight line at once."""

from __future__ import annotations

from collections.abc import Mapping

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel
from deconv_cli.kernels.sources.disk import disk_kernel
from deconv_cli.kernels.sources.kernel_source import BlurFamily, KernelSource, Numbers
from deconv_cli.kernels.sources.motion import motion_kernel


def disk_motion_kernel(radius: float, length: float, angle: float) -> ContinuousKernel:
    """Describe a disk that follows a line.

    Args:
        radius: of the disk, in pixels.
        length: of the line, in pixels.
        angle: of the line, in degrees, counterclockwise from the horizontal as the picture is seen.

    Raises:
        UsageError: radius or length are not positive, or too large.
    """
    return disk_kernel(radius) * motion_kernel(length, angle)


def _starts(best: Mapping[str, Numbers]) -> list[Numbers]:
    (radius,), (length, angle) = best["disk"], best["motion"]
    pairs = ((1.0, 0.4), (0.85, 0.7), (0.6, 0.9), (0.35, 1.0))
    return [(radius * r, length * m, angle) for r, m in pairs if radius * r > 1 and length * m > 2]


DISK_MOTION = KernelSource(
    ("RADIUS", "LENGTH", "ANGLE"),
    disk_motion_kernel,
    BlurFamily(lambda _, best: _starts(best), lambda n: (0.1, 0.15, 180 / max(n[1], 8)), log_penalty=20.0),
    along=(-1, -1, None),
    example="4@9@30",
)
