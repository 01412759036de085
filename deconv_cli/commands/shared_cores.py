"""The cores and the memory of this process, shared by files that are worked on side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deconv_cli.commands.job import Source

N_ON_DEVICE = 2
"""Files that are on a GPU at once: one computes while the other comes or goes."""


class SharedCores:
    """Lends each file its part of the cores: a file a core, as far as the memory goes.

    torch cuts an operation up among its threads, which wait for one another in a loop. Of pictures of 512 × 512 two
    take half as long with a thread each as one after the other with two threads, and what is read, tested and written,
    which is the work of one thread anyway, keeps no core idle. There is a file more than cores, since one of them
    mostly waits for the disk.

    Args:
        n_files: how many there are.
        n_bytes: that all of them may take together.
        device: type of the device of the arithmetic.

    Attributes:
        n_places: files that are worked on at once, if they are small.
    """

    def __init__(self, n_files: int, n_bytes: int, device: str = "cpu") -> None:
        import torch

        self._n_cores = torch.get_num_threads()
        self.n_places = min(n_files, 1 + (self._n_cores if device == "cpu" else N_ON_DEVICE))
        self._n_bytes = n_bytes
        self._n_free = self.n_places
        self._turn, self._room = threading.Lock(), threading.Condition()
        self._is_closed = False

    @contextmanager
    def lent(self, read: Callable[[], Source | None]) -> Iterator[Source | None]:
        """Read a file, wait until there is room for it, and give it with its cores as long as the block runs.

        One file at a time is read, so that no more than one waits for room.

        Raises:
            KeyboardInterrupt: nothing more is to be begun.
        """
        import torch

        with self._turn:
            source = read()
            n_places = 0 if source is None else self._places_of(source)
            with self._room:
                self._room.wait_for(lambda: self._n_free >= n_places or self._is_closed)
                if self._is_closed:
                    raise KeyboardInterrupt
                self._n_free -= n_places
        try:
            n_at_once = self.n_places // max(1, n_places)
            torch.get_num_threads()  # else torch, when it meets this thread, lets it have what was last set by any
            torch.set_num_threads(max(1, self._n_cores // n_at_once))
            yield source
        finally:
            torch.set_num_threads(self._n_cores)  # of threads too that torch meets later
            with self._room:
                self._n_free += n_places
                self._room.notify_all()

    def close(self) -> None:
        """Begin nothing more."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()

    def is_closed(self) -> bool:
        """Tell whether nothing more is to be begun."""
        return self._is_closed

    def _places_of(self, source: Source) -> int:
        """Give the places that a file takes; one that is restored in blocks, whose threads are its own, all of them."""
        from deconv_cli.blocks.block_memory import MAX_BYTES_A_SAMPLE

        if source.large is not None:
            return self.n_places
        n_fit = self._n_bytes // (MAX_BYTES_A_SAMPLE * max(1, source.image.values.numel()))
        return -(-self.n_places // n_fit) if n_fit else self.n_places
