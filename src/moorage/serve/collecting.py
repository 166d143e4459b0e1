"""The garbage collector of a server: what was loaded stays for long, and looking through it again and again would stop
the loop for longer than any request takes.

Records hold no cycles: what is dropped is freed at once without a collection.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

# Objects that are made before the young ones are looked through; a request makes some hundred.
THRESHOLDS = (20_000, 20, 50)
LOOK_S = 10.0
GROWN_MIN = 5_000


class Collector:
    """``count``: how many records there are."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._frozen = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Collect nothing until ``freeze``, and rarely from then on until the block ends; then as before."""
        before, was_enabled = gc.get_threshold(), gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            gc.unfreeze()
            gc.set_threshold(*before)
            if was_enabled:
                gc.enable()

    def freeze(self) -> None:
        """Take all that is there now out of the collector's sight, after it has looked through it once."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        gc.enable()
        self._frozen = self._count()

    async def run(self) -> None:
        """Freeze again whenever many records have come, until cancelled: a full collection would stop everything."""
        while True:
            await anyio.sleep(LOOK_S)
            if self._count() - self._frozen >= GROWN_MIN:
                gc.collect(1)
                gc.freeze()
                self._frozen = self._count()
