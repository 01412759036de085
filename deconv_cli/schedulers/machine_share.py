"""What a worker takes of the machine that it shares: so many threads that all use each core once, and a GPU."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from deconv_cli.errors import UsageError


@dataclass(frozen=True)
class MachineShare:
    """What each of several workers of a machine takes.

    Attributes:
        n_threads: of its arithmetic.
        has_gpu: whether it computes on a GPU of its own.
    """

    n_threads: int
    has_gpu: bool = False

    @classmethod
    def of(cls, n_workers: int, device: str) -> MachineShare:
        """Divide this machine: the threads that torch takes here, and its GPUs.

        Raises:
            UsageError: the arithmetic runs on GPUs, of which there are fewer than workers.
        """
        import torch

        n_threads = max(1, torch.get_num_threads() // n_workers)
        if device != "cuda":
            return cls(n_threads)
        n_gpus = torch.cuda.device_count()
        if n_workers > n_gpus:
            raise UsageError(
                f"each process has a GPU to itself, but there are {n_workers} processes and {n_gpus} GPUs; start "
                f'{n_gpus} at most, or compute with device="cpu".'
            )
        return cls(n_threads, has_gpu=True)

    def take(self, place: int) -> None:
        """Make the calling thread, and libraries that are not loaded yet, take no more.

        Args:
            place: which worker of the machine this is.
        """
        os.environ["OMP_NUM_THREADS"] = str(self.n_threads)
        if self.has_gpu:
            import torch

            torch.cuda.set_device(place)
        if "torch" in sys.modules:  # else it reads the variable when it is loaded, which a short task need not do
            import torch

            torch.set_num_threads(self.n_threads)
