"""The inverses that a pipeline built last, one for each size and each settings, as far as the memory allows."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from deconv_cli.errors import TooLargeError
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solver import free_memory

MAX_INVERSES = 8
MEMORY_SHARE = 0.125
"""The inverses that are kept take no more than this part of the memory that may be used."""


class BuiltInverses:
    """Keeps inverses by what makes them what they are; the one that was not used for longest goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, PseudoInverse] = OrderedDict()
        self._finding = threading.Lock()

    def find(self, key: Hashable, build: Callable[[], PseudoInverse]) -> PseudoInverse:
        """Give the inverse of a key, built if it is not there: once, also where several threads ask for it."""
        with self._finding:
            return self._found(key, build)

    def _found(self, key: Hashable, build: Callable[[], PseudoInverse]) -> PseudoInverse:
        found = self._kept.pop(key, None)
        if found is None:
            self._shrink(MAX_INVERSES - 1)
            try:
                found = build()
            except TooLargeError:
                if not self._kept:
                    raise
                self._kept.clear()
                found = build()
        self._kept[key] = found
        if len(self._kept) > 1:
            allowed = found.settings.max_memory
            allowed = free_memory(found.kernel.taps.device) if allowed is None else allowed
            self._shrink(MAX_INVERSES, MEMORY_SHARE * allowed)
        return found

    def _shrink(self, n_left: int, n_bytes: float = math.inf) -> None:
        """Let go of inverses until no more are left, and no larger, but for the last one."""
        sizes = [kept.cost.n_bytes_built for kept in self._kept.values()]
        while len(sizes) > n_left or (len(sizes) > 1 and sum(sizes) > n_bytes):
            self._kept.popitem(last=False)
            sizes.pop(0)
