"""Batches prepared ahead of the step that needs them, by worker processes if there are any."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from unipic.errors import UnipicError

Batch = Callable[[int], Sequence[Any]]
"""A step's batch: a pure function, on the CPU"""


class _Steps(Dataset[Any]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __getitem__(self, step: int) -> Sequence[Any] | UnipicError:
        try:
            return self.batch(step)
        except UnipicError as error:  # out of a worker it would be raised as another text
            return error


def prepared(batch: Batch, steps: range, workers: int, lock: int | None) -> Generator[Sequence[Any], None, None]:
    """The batches of these steps; close it when done. workers: 0 prepares them here. lock: see `disk.locked`."""
    loader = DataLoader(
        _Steps(batch),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=partial(_begin_worker, lock),
    )
    batches = iter(loader)
    try:
        for micros in batches:
            if isinstance(micros, UnipicError):
                raise micros
            yield micros
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()  # else they would live as long as the traceback of an error


def _begin_worker(lock: int | None, _: int) -> None:
    """A SIGTERM to all is the run's to obey, which still needs a batch; a second one ends us.

    What a killed run leaves of us must not hold its lock.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if lock is not None:
        os.close(lock)
