"""The data that a problem lacks on a torus, and the system that completes it, at some frequencies at a time.

These are the systems of `border_system.py` that are symmetric and positive definite, in any number of dimensions. With
K scaled to σmax = 1, s = λ (1 for λ = 0), and P, M and N as in `fourier.TorusBlocks` but M multiplied by 1/s:

- `MissingOutputs`: outputs were not observed. For their values u, M(y + u) − Pᴴg = 0 where they are missing, and the
  image is z = P(y + u) + Ng. Since P = KᴴM, only M is stored.
- `MissingDifferences`: the same under a penalty on differences, where differences of the torus that the image lacks are
  missing as well. With the rows A of √λ l_j stacked below K, and values q for the missing part of both, q − AN(Aᴴ(y +
  q) + g) = 0 there, and z = N(Aᴴ(y + q) + g).
- `TiedPixels`: pixels are zero outside the image, and all outputs were observed. Multipliers ν hold those
  pixels at zero: N(Kᴴy + g − ν) = 0 there, and the image is z = N(Kᴴy + g − ν).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deconv_cli.operators.axes import squared_modulus
from deconv_cli.operators.circulant import FrequencyBlocks, PartialSymbol, channels_first, channels_last, to_float64
from deconv_cli.operators.differences import Difference
from deconv_cli.operators.torus_filter import TorusFilter
from deconv_cli.solvers.fourier import SINGULAR, torus_blocks


class _Blocks:
    """The common part of the three systems: the symbol H, for one part of the torus' frequencies after the other.

    The maps take spectra of one part, `(B, channels, N1, n_columns, *)`, and may overwrite them: `read` gives the
    system's right-hand side of a gradient g, `image` the image that unknowns add, `outputs` the outputs Pᴴg of the
    image of g, `outputs_of_unknowns` those of the image that unknowns add, and `gradient` the negative gradient of the
    normal equations for a residual of the system. K is in double precision, `dtype` is the real one of the arithmetic.
    """

    n_channels: int
    _blocks: list[FrequencyBlocks]
    """M of `MissingOutputs`, N of the others, for each part of the frequencies."""

    def __init__(self, symbol: PartialSymbol, torus: TorusFilter, lam: float, dtype: torch.dtype) -> None:
        self._symbol = symbol.to(dtype.to_complex())
        self._torus = torus
        self._scale = lam if lam > 0 else 1.0

    def apply(self, number: int, unknowns: Tensor) -> Tensor:
        """Multiply by H, which is M or N unless a subclass says otherwise."""
        return self._blocks[number].multiply(unknowns)

    def image_of_inputs(self, number: int, inputs: Tensor) -> Tensor:
        """Compute Ng."""
        return self._blocks[number].multiply(inputs)

    def symbol_of(self, kinds: Sequence[int]) -> Tensor:
        """Return H among the channels of some kinds of unknowns: `(C, C, *half spectrum)`, real where C = 1."""
        return torch.cat([channels_first(part.matrices) for part in self._blocks], dim=3)

    def _kernel(self, number: int) -> FrequencyBlocks:
        """Evaluate K at a part of the frequencies, at each call to save memory."""
        return FrequencyBlocks(channels_last(self._symbol.at(self._torus.parts[number])))


class MissingOutputs(_Blocks):
    """Outputs that were not observed, where nothing else is missing."""

    def __init__(self, symbol: PartialSymbol, torus: TorusFilter, lam: float, dtype: torch.dtype) -> None:
        super().__init__(symbol, torus, lam, dtype)
        self.n_channels = symbol.n_outputs
        self._blocks = []
        for part in torus.parts:
            kernel = channels_last(symbol.at(part))
            if kernel.shape[-2:] == (1, 1) and lam > 0:
                block = FrequencyBlocks(squared_modulus(kernel).add_(lam).reciprocal_().mul_(lam).to(dtype))
            else:
                unit = kernel.real.new_ones(kernel.shape[:-2])
                block = _narrow(torus_blocks(kernel, lam, unit, covers_inputs=False).outputs, dtype)
            self._blocks.append(block)

    def read(self, number: int, inputs: Tensor) -> Tensor:
        """Compute Pᴴg = MKg/s."""
        return self.apply(number, self._kernel(number).multiply(inputs)).div_(self._scale)

    def image(self, number: int, unknowns: Tensor) -> Tensor:
        """Compute Pu = KᴴMu/s, for all outputs, observed ones included."""
        return self._kernel(number).multiply(self.apply(number, unknowns), adjoint=True).div_(self._scale)

    def image_of_inputs(self, number: int, inputs: Tensor) -> Tensor:
        """Compute Ng = (g − KᴴMKg/s)/s."""
        kernel = self._kernel(number)
        again = kernel.multiply(self.apply(number, kernel.multiply(inputs)), adjoint=True)
        return (inputs - again / self._scale) / self._scale

    def outputs(self, number: int, inputs: Tensor) -> Tensor:
        """Compute Pᴴg, which equals `read`."""
        return self.read(number, inputs)

    def outputs_of_unknowns(self, number: int, unknowns: Tensor) -> Tensor:
        """Compute −Mu."""
        return self.apply(number, unknowns).neg_()

    def gradient(self, number: int, residual: Tensor) -> Tensor:
        """Compute Kᴴr."""
        return self._kernel(number).multiply(residual, adjoint=True)


class MissingDifferences(_Blocks):
    """Outputs that were not observed, and differences that the torus has and the image has not; λ > 0.

    `terms` are the penalized differences, and `is_missing` tells whether the image lacks any of each.
    """

    def __init__(
        self,
        symbol: PartialSymbol,
        torus: TorusFilter,
        lam: float,
        dtype: torch.dtype,
        terms: list[Difference],
        is_missing: list[bool],
    ) -> None:
        super().__init__(symbol, torus, lam, dtype)
        self._sizes = [symbol.n_outputs, *[symbol.n_inputs] * sum(is_missing)]
        self.n_channels = sum(self._sizes)
        device = torus.like.device
        self._terms = []
        for term in terms:
            first, *others = term.symbol(torus.torus, to_float64(torus.like[:0]).dtype, device)
            self._terms.append([lam**0.5 * first, *others])
        self._kernels = [self._kernel(number) for number in range(len(torus.parts))]
        self._blocks = []
        for number, part in enumerate(torus.parts):
            energy = torch.stack([self._difference(number, term).abs().square() for term in self._terms]).sum(0) / lam
            self._blocks.append(_inputs_block(channels_last(symbol.at(part)), lam, energy, dtype))
        missing = [term for term, is_one in zip(self._terms, is_missing, strict=True) if is_one]
        self._terms = [[factor.to(dtype.to_complex()) for factor in term] for term in missing]

    def apply(self, number: int, unknowns: Tensor) -> Tensor:
        """Compute q − ANAᴴq."""
        return unknowns - self._rows(number, self.image(number, unknowns))

    def read(self, number: int, inputs: Tensor) -> Tensor:
        """Compute ANg."""
        return self._rows(number, self.image_of_inputs(number, inputs))

    def image(self, number: int, unknowns: Tensor) -> Tensor:
        """Compute NAᴴq."""
        return self._blocks[number].multiply(self.gradient(number, unknowns))

    def outputs(self, number: int, inputs: Tensor) -> Tensor:
        """Compute KNg."""
        return self._kernels[number].multiply(self.image_of_inputs(number, inputs))

    def outputs_of_unknowns(self, number: int, unknowns: Tensor) -> Tensor:
        """Compute the outputs among −q + ANAᴴq."""
        return self.apply(number, unknowns)[:, : self._sizes[0]].neg()

    def gradient(self, number: int, residual: Tensor) -> Tensor:
        """Compute Aᴴr."""
        outputs, *differences = residual.split(self._sizes, dim=1)
        total = self._kernels[number].multiply(outputs, adjoint=True)
        for term, difference in zip(self._terms, differences, strict=True):
            total += self._difference(number, term).conj() * difference
        return total

    def symbol_of(self, kinds: Sequence[int]) -> Tensor:
        """Return I − ANAᴴ among the rows of A of some kinds: those of K, and of √λ l_j."""
        n_channels = sum(self._sizes[kind] for kind in kinds)
        half, is_real = self._torus.half_spectrum, n_channels == 1
        dtype = self._torus.like.dtype
        whole = self._torus.like.new_empty(
            n_channels, n_channels, *half, dtype=dtype if is_real else dtype.to_complex()
        )
        for number, (part, block) in enumerate(zip(self._torus.parts, self._blocks, strict=True)):
            rows = torch.cat([self._rows_of(number, kind) for kind in kinds], dim=-2)
            inverse = block.matrices.to(rows.dtype)
            # Products of single numbers, element by element: as matrices they take ten times as long.
            product = rows * inverse * rows.mH if rows.shape[-1] == 1 else rows @ inverse @ rows.mH
            whole[:, :, :, part] = channels_first(product.real if is_real else product)
        whole.neg_().diagonal().add_(1.0)
        return whole

    def _rows_of(self, number: int, kind: int) -> Tensor:
        """Give the rows of A of one kind as blocks `(*part, C, C_in)`."""
        if kind == 0:
            return self._kernels[number].matrices
        difference = self._difference(number, self._terms[kind - 1])
        return difference[..., None, None] * torch.eye(
            self._sizes[kind], dtype=difference.dtype, device=difference.device
        )

    def _rows(self, number: int, image: Tensor) -> Tensor:
        differences = [self._difference(number, term) * image for term in self._terms]
        return torch.cat([self._kernels[number].multiply(image), *differences], dim=1)

    def _difference(self, number: int, term: list[Tensor]) -> Tensor:
        """Evaluate √λ l at a part of the frequencies."""
        first, second, *others = term
        product = first * second[self._torus.parts[number]]
        for factor in others:
            product = product * factor
        return product


class TiedPixels(_Blocks):
    """Pixels that are zero outside the image, where all outputs were observed."""

    def __init__(self, symbol: PartialSymbol, torus: TorusFilter, lam: float, dtype: torch.dtype) -> None:
        super().__init__(symbol, torus, lam, dtype)
        self.n_channels = symbol.n_inputs
        self._blocks = [_inputs_block(channels_last(symbol.at(part)), lam, None, dtype) for part in torus.parts]

    def inputs(self, number: int, data: Tensor) -> Tensor:
        """Compute Kᴴy, the gradient of data."""
        return self._kernel(number).multiply(data, adjoint=True)

    def outputs(self, number: int, inputs: Tensor) -> Tensor:
        """Compute Pᴴg = KNg."""
        return self._kernel(number).multiply(self.apply(number, inputs))

    def outputs_of_unknowns(self, number: int, unknowns: Tensor) -> Tensor:
        """Compute −KNν."""
        return self.outputs(number, unknowns).neg_()

    def read(self, number: int, inputs: Tensor) -> Tensor:
        """Compute Ng."""
        return self.apply(number, inputs)

    def image(self, number: int, unknowns: Tensor) -> Tensor:
        """Compute −Nν."""
        return self.apply(number, unknowns).neg_()

    def gradient(self, number: int, residual: Tensor) -> Tensor:
        """Compute KᴴKr for the residual r of pixels outside that should be zero."""
        kernel = self._kernel(number)
        return kernel.multiply(kernel.multiply(residual), adjoint=True)


Completion = MissingOutputs | MissingDifferences | TiedPixels
"""One of the systems."""


def _inputs_block(kernel: Tensor, lam: float, penalty: Tensor | None, dtype: torch.dtype) -> FrequencyBlocks:
    """Compute N from K and |l|², shapes `(*plane, C_out, C_in)` and `(*plane,)`, in double precision."""
    if penalty is None:
        penalty = kernel.real.new_ones(kernel.shape[:-2])
    if kernel.shape[-2:] == (1, 1) and lam > 0:
        power = squared_modulus(kernel).addcmul_(penalty[..., None, None], penalty.new_tensor(lam))
        # What the kernel and the penalty both annihilate is zero in the smallest solution.
        floor = SINGULAR * power.max()
        return FrequencyBlocks(torch.where(power > floor, power.clamp_min(floor).reciprocal_(), 0).to(dtype))
    return _narrow(torus_blocks(kernel, lam, penalty, covers_inputs=True).inputs, dtype)


def _narrow(blocks: Tensor, dtype: torch.dtype) -> FrequencyBlocks:
    """Keep blocks in another precision; Hermitian blocks of one entry are real."""
    return FrequencyBlocks(blocks.real.to(dtype) if blocks.shape[-1] == 1 else blocks.to(dtype.to_complex()))
