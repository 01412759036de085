"""The inverses that a pipeline built last, one for each size and settings, within a share of the memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

from deconv_cli.errors import TooLargeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solver import free_memory
from deconv_cli.vocabulary import Size

MAX_INVERSES = 8
MEMORY_SHARE = 0.125
"""Share of the usable memory that the kept inverses may take."""


class BuiltInverses:
    """Keeps the inverses of one kernel; the one that was not used for longest goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, PseudoInverse] = OrderedDict()
        self._finding = threading.Lock()

    def find(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> PseudoInverse:
        """Return an inverse; it is built once, even if several threads ask for it, and is the same for all noise."""
        settings = replace(settings, noise=None)
        key = (image_size, settings, kernel.taps.dtype, kernel.taps.device)
        with self._finding:
            found = self._kept.pop(key, None)
            if found is None:
                found = self._build(kernel, image_size, settings)
            self._kept[key] = found
            if len(self._kept) > 1:
                allowed = settings.max_memory or free_memory(kernel.taps.device)
                self._shrink(MAX_INVERSES, MEMORY_SHARE * allowed)
            return found

    def _build(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> PseudoInverse:
        self._shrink(MAX_INVERSES - 1)
        try:
            return PseudoInverse(kernel, image_size, settings)
        except TooLargeError:
            if not self._kept:
                raise
            self._kept.clear()
            return PseudoInverse(kernel, image_size, settings)

    def _shrink(self, n_left: int, n_bytes: float = math.inf) -> None:
        """Drop the oldest inverses until at most `n_left` of at most `n_bytes` remain, but never the last one."""
        sizes = [kept.cost.n_bytes_built for kept in self._kept.values()]
        while len(sizes) > n_left or (len(sizes) > 1 and sum(sizes) > n_bytes):
            self._kept.popitem(last=False)
            sizes.pop(0)
