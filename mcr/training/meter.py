"""Meter: how fast a run goes, and how much of the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Meter:
    """Images per second, and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each comes counts as waiting for data."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def count(self, images: int) -> None:
        self._images += images

    def read(self) -> dict[str, float]:
        """{"images_per_s", "data_wait"}; starts anew."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        result = {"images_per_s": self._images / elapsed, "data_wait": self._waited / elapsed}
        self.reset()
        return result
