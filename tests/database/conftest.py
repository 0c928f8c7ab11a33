"""What the tests of the database share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def forgotten_sockets() -> Iterator[None]:
    """The driver forgets a socket that is still connecting when its client is closed, and Python mentions each when it is
    collected: here, where a mark ignores it, and not in some other test."""
    yield
    gc.collect()
