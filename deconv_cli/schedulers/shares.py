"""What a worker takes of the machine that it shares: so many threads that all use each core once, and a GPU."""

from __future__ import annotations

import os

from deconv_cli.allocator import keep_freed_memory
from deconv_cli.errors import UsageError


def threads_per_worker(n_workers: int) -> int:
    """Give the threads of each of so many workers, that together they take those that torch would take here."""
    import torch

    return max(1, torch.get_num_threads() // n_workers)


def check_gpus(n_workers: int, device: str) -> None:
    """Make sure that each worker has a GPU to itself where the arithmetic runs on one.

    Raises:
        UsageError: there are more workers than GPUs.
    """
    import torch

    if device != "cuda" or n_workers <= torch.cuda.device_count():
        return
    n_gpus = torch.cuda.device_count()
    raise UsageError(
        f"each process has a GPU to itself, but there are {n_workers} processes and {n_gpus} GPUs here; start at most "
        f'{n_gpus}, or compute with device="cpu".'
    )


def take_share(n_threads: int, place: int | None) -> None:
    """Make this process use so many threads, and one GPU of the machine, if it has any.

    Args:
        n_threads: of torch, and of libraries that are not loaded yet.
        place: which worker of this machine the process is; `None` where others started it, who look after its memory
            and its GPU.
    """
    os.environ["OMP_NUM_THREADS"] = str(n_threads)  # before any library reads it
    import torch

    torch.set_num_threads(n_threads)
    if place is None:
        return
    keep_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
