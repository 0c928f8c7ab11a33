"""Python's cyclic garbage collector, paused while large values are decoded.

Each list and object counts as a candidate, so that decoding 17 MB of strokes starts hundreds of collections,
which find nothing, take two thirds of the time, and hold the lock that all threads need.
"""

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["paused_collection"]


@contextlib.contextmanager
def paused_collection(wanted: bool = True) -> Iterator[None]:
    """Start no collection in the block. Of blocks that overlap in threads,
    the first one to end resumes collections."""
    if not wanted or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
