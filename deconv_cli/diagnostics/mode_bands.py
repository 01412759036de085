"""Modes of like σ taken together, and what an inverse filter keeps of them: the same for all data of one size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.inverse_filter import InverseFilter, root_mean_square
from deconv_cli.diagnostics.torus_modes import TorusModes
from deconv_cli.operators import synchronize

N_BANDS = 24
DECIDED_SHARE, DECIDED = 0.02, 0.5
"""The data decide the modes of which the estimate keeps this much, or else the part of all of which it keeps most."""


@dataclass(frozen=True, eq=False)
class ModeBands:
    """The modes of a kernel in bands of like σ, and what made an estimate as a filter.

    Attributes:
        modes: of the kernel on the torus of the data.
        inverse: the filter.
    """

    modes: TorusModes
    inverse: InverseFilter

    @cached_property
    def sigma(self) -> Tensor:
        """The singular value of each of n modes, shape `(n,)`."""
        return self.modes.sigma.flatten()

    @cached_property
    def _rising(self) -> tuple[Tensor, ...]:
        """Numbers of the modes of each band."""
        return self.sigma.argsort().tensor_split(min(N_BANDS, len(self.sigma)))

    @cached_property
    def counts(self) -> list[int]:
        """How many modes each band has."""
        return [len(band) for band in self._rising]

    @cached_property
    def index(self) -> Tensor:
        """The band that each mode belongs to, shape `(n,)`."""
        index = torch.empty_like(self.sigma, dtype=torch.int64)
        for number, band in enumerate(self._rising):
            index.index_fill_(0, band, number)
        return index

    @cached_property
    def share(self) -> Tensor:
        """The part of its band that each mode stands for, shape `(n,)`."""
        weights = self.modes.weights[..., None].expand_as(self.modes.sigma).flatten()
        return weights / self._sums(weights)[self.index]

    @cached_property
    def _kept(self) -> Tensor:
        return self.inverse.passed(self.modes).flatten()

    @cached_property
    def lost(self) -> Tensor:
        """The part of the power of each mode that the residual holds, shape `(n,)`."""
        return (1 - self._kept).square()

    @cached_property
    def signal(self) -> list[float]:
        """What the residual holds of an image whose power is 1 along every mode, on average over each band."""
        return self.mean(self.lost * self.sigma.square())

    @cached_property
    def decided(self) -> Tensor:
        """Numbers of the modes that the data decide, shape `(m,)`."""
        return synchronize.places(self._kept >= self._kept.quantile(1 - DECIDED_SHARE).clamp_max(DECIDED))

    @cached_property
    def _squared_gain(self) -> Tensor:
        return self.inverse.gain(self.modes).square()

    def noise_gain(self, noise: Tensor) -> float:
        """Compute how much stronger noise comes back, of which the power along each mode is given: shape `(*F, m)`."""
        return root_mean_square(self.modes, noise * self._squared_gain)

    def strength(self, power: Tensor) -> float:
        """Give the median power of an image along the modes that data of `power` decide, of shape `(n,)`."""
        return synchronize.medians([power[self.decided] / self._decided_gain])[0]

    @cached_property
    def _decided_gain(self) -> Tensor:
        return self.sigma[self.decided].square().clamp_min(torch.finfo(self.sigma.dtype).tiny)

    def mean(self, values: Tensor) -> list[float]:
        """Average values `(n,)` over each band."""
        return synchronize.as_numbers(self._sums(self.share * values))

    def _sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.counts)).scatter_add(0, self.index, values)
