"""Layers with every stride, dilation, grouping, direction and border, drawn once and for all from a seed."""

from __future__ import annotations

import random as pseudo_random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import torch
from cases import random
from torch import Tensor, nn

from deconv_cli.errors import ShapeError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.layer_convolution import LayerConvolution

TORCH_MODES = {"zero": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
"""Boundaries that torch has too, by the names that it gives them."""
BOUNDARIES = ("zero", "zero", "zero", "circular", "reflect", "replicate", "symmetric", "unknown")
LARGEST = {1: 11, 2: 6, 3: 4}
"""Pixels along each axis at most, by the number of axes."""
LEAST_GAIN = 1e-4
"""Singular values below this part of the largest, except zeros, would make a comparison one of rounding."""
MODULES = {
    False: {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d},
    True: {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d},
}


@dataclass(frozen=True)
class LayerCase:
    """One layer on one image size; its kernel is drawn until no singular value is tiny."""

    options: LayerOptions
    size: tuple[int, ...]
    shape: tuple[int, ...]
    padding: tuple[int, ...]
    boundary: str
    seed: int

    @property
    def name(self) -> str:
        shape, size, padding = ("x".join(map(str, numbers)) for numbers in (self.shape, self.size, self.padding))
        options = self.options.describe().replace(" ", "-").replace(",-", "_")
        return f"{shape}-on-{size}-{self.boundary}-{padding}-{options}"

    def operator_of(self, kernel: Tensor) -> LayerConvolution:
        return LayerConvolution(kernel, self.size, self.options, padding=self.padding, boundary=self.boundary)

    @cached_property
    def operator(self) -> LayerConvolution:
        for attempt in count():
            operator = self.operator_of(random(self.shape, seed=self.seed + 7919 * attempt))
            if is_well_conditioned(operator.as_matrix()):
                return operator
            assert attempt < 100, self.name
        raise AssertionError

    def module(self) -> nn.Module:
        """Build the layer of torch with these taps."""
        options, n_axes = self.options, len(self.size)
        first, second = self.shape[0], self.shape[1] * options.groups
        channels = (first, second) if options.transposed else (second, first)
        more = {"output_padding": options.output_padding} if options.transposed else {}
        if not options.transposed:
            more["padding_mode"] = TORCH_MODES[self.boundary]
        layer = MODULES[options.transposed][n_axes](
            *channels,
            self.shape[2:],
            stride=options.stride,
            padding=self.padding,
            dilation=options.dilation,
            groups=options.groups,
            bias=False,
            dtype=torch.float64,
            **more,
        )
        with torch.no_grad():
            layer.weight.copy_(self.operator.kernel)
        return layer


def is_well_conditioned(matrix: Tensor) -> bool:
    values = torch.linalg.svdvals(matrix)
    kept = values[values > 1e-12 * values[0]]
    return len(kept) > 0 and bool(kept[-1] > LEAST_GAIN * values[0])


N_CASES, N_QUICK = 420, 60
"""Number of layers, and number of those that every run tries."""


def case_of(number: int) -> LayerCase:
    """Give one of the layers."""
    while len(_DRAWN) <= number:
        _DRAWN.append(next(_SEQUENCE))
    return _DRAWN[number]


def draw_cases() -> Iterator[LayerCase]:
    """Draw layers that torch accepts, always the same, except those that no kernel makes well-conditioned."""
    chance = pseudo_random.Random(20)
    for number in count():
        case = _draw(chance, number)
        if case.options.is_plain:
            continue
        try:
            operators = (case.operator_of(random(case.shape, seed=case.seed + 7919 * k)) for k in range(6))
            if any(is_well_conditioned(operator.as_matrix()) for operator in operators):
                yield case
        except ShapeError:
            continue


def _draw(chance: pseudo_random.Random, number: int) -> LayerCase:
    n_axes = (1, 2, 2, 3)[number % 4]
    is_transposed = chance.random() < 0.25

    def numbers(*choices: int) -> tuple[int, ...]:
        return tuple(chance.choice(choices) for _ in range(n_axes))

    stride, dilation, groups = numbers(1, 2, 3), numbers(1, 1, 2, 3), chance.choice((1, 1, 2, 3))
    options = LayerOptions(stride=stride, dilation=dilation, groups=groups)
    if is_transposed:
        added = tuple(chance.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        options = replace(options, transposed=True, output_padding=added)
    first, second = groups * chance.choice((1, 2)), chance.choice((1, 2))
    return LayerCase(
        options,
        size=tuple(chance.randint(3, LARGEST[n_axes]) for _ in range(n_axes)),
        shape=(first, second, *numbers(1, 2, 3, 4)),
        padding=numbers(0, 1, 2, 3),
        boundary="zero" if is_transposed else chance.choice(BOUNDARIES),
        seed=number,
    )


_DRAWN: list[LayerCase] = []
_SEQUENCE = draw_cases()
