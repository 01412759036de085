"""What would let blocks agree with the whole where they do not: a setting under which it was measured that they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from deconv_cli.blocks.block_memory import SHARE, block_bytes
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.cut_blocks import BlockOptions
from deconv_cli.blocks.fixed_choices import FixedChoices
from deconv_cli.vocabulary import format_memory

LAMBDAS = (*(float(f"{digit}e{power}") for power in range(-8, 0) for digit in (1, 3)), 1.0)
ITERATIONS = (1000, 500, 300, 200, 100, 50, 30, 20, 10, 5, 3, 2, 1)
WEIGHT_STEP = 3.0
"""What is tried, in steps that make a difference."""
N_CONFIRMED = 3
"""Choices that are looked at closely, at most, where those that one piece named are not enough for all of them."""


def advise(
    problem: BlockProblem, choices: FixedChoices, options: BlockOptions, agree: Callable[[FixedChoices, bool], bool]
) -> str:
    """Say which setting lets blocks agree, and what it takes to do without blocks.

    Args:
        problem: what is restored, with nothing left open.
        choices: under which blocks do not agree.
        options: how it is to be cut.
        agree: tells whether blocks agree under other choices, on a single piece where that is said, which takes less.
    """
    found = next(filter(None, (confirmed(tried, agree) for tried in directions(choices))), None)
    whole = whole_instead(problem, options)
    if found is None:
        return whole
    return f"use {_as_argument(found)}, under which blocks were measured to agree with the whole, or {whole}"


def directions(choices: FixedChoices) -> list[list[FixedChoices]]:
    """List choices under which a cut may reach less far, the nearest first, and where it is not clear the other way."""
    if choices.lams:
        return [[replace(choices, lams=(lam,)) for lam in LAMBDAS if lam > max(choices.lams)]]
    if choices.weight is not None:
        # A large one makes wide regions flat, each as one, and under a small one the inverse of the kernel rings on.
        smaller, larger = ([choices.weight * WEIGHT_STEP ** (sign * n) for n in (1, 2, 3)] for sign in (-1, 1))
        return [[replace(choices, weight=float(f"{w:.1g}")) for w in weights] for weights in (smaller, larger)]
    if choices.iterations is not None:
        return [[replace(choices, iterations=n) for n in ITERATIONS if n < choices.iterations]]
    return []


def nearest(tried: Sequence[FixedChoices], agree: Callable[[FixedChoices], bool]) -> FixedChoices | None:
    """Find the first of several choices under which blocks agree, by bisection; `None` where they do under none."""
    best: FixedChoices | None = None
    low, high = 0, len(tried)
    while low < high:
        middle = high - 1 if best is None else (low + high) // 2  # the last one decides whether there is any
        if agree(tried[middle]):
            best, high = tried[middle], middle
        elif best is None:
            return None
        else:
            low = middle + 1
    return best


def confirmed(tried: Sequence[FixedChoices], agree: Callable[[FixedChoices, bool], bool]) -> FixedChoices | None:
    """Find the first choices under which a single piece agrees, and from there on those under which all of them do.

    Args:
        tried: choices, the nearest first.
        agree: tells whether blocks agree under them, on a single piece where that is said.
    """
    first = nearest(tried, lambda choices: agree(choices, True))
    if first is None:
        return None
    start = tried.index(first)
    return next((choices for choices in tried[start : start + N_CONFIRMED] if agree(choices, False)), None)


def _as_argument(choices: FixedChoices) -> str:
    if choices.lams:
        return f"lam={choices.lams[0]:g}"
    if choices.weight is not None:
        return f"weight={choices.weight:g}"
    return f"iterations={choices.iterations}"


def whole_instead(problem: BlockProblem, options: BlockOptions) -> str:
    """Advise to restore a picture as a whole, and say what has to change before."""
    whole = block_bytes(problem, problem.data_size, problem.layout.n_batch, is_tested=True)
    n_bytes = 1.01 * whole / SHARE  # rounded when printed
    needs = [] if options.block_size is None else ["without block_size"]
    if n_bytes > options.max_memory:
        needs.append(f"with a max_memory of {format_memory(n_bytes)}")
    return "restore it as a whole" + (", " + " and ".join(needs) if needs else "")
