"""What describes a prior other than a quadratic penalty: what it needs to know of the data, and its estimator.

A prior of a caller's own is one subclass and one line, `deconv_cli.PRIORS.register("name", MyPrior())`: it can then be
given as `prior`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.vocabulary import Size

DataEstimate = Literal["noise", "noise map", "gain", "weight"]
"""What is estimated from the data: the standard deviation of the noise, the same for every sample, units of the samples
a count, or the weight of the total variation."""


class Prior(ABC):
    """An objective, with the estimator that minimizes it."""

    def needs(self, settings: ResolvedSettings) -> DataEstimate | None:
        """Return what `build` needs to be estimated from the data beforehand; `None` for nothing."""
        del settings
        return None

    @abstractmethod
    def build(
        self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, estimate: float | Tensor | None = None
    ) -> Estimator:
        """Build the estimator.

        Args:
            kernel: canonical kernel; its dtype and device are those of the arithmetic.
            image_size: size of the images that are wanted back.
            settings: all settings; a prior reads its own, such as weight, gain and noise_sigma.
            estimate: what `needs` names, in units of the samples; `None` where the data do not show it.

        Raises:
            ShapeError: the kernel does not fit the size.
            UsageError: settings that the prior cannot follow.
            TooLargeError: it does not fit the memory.
        """
