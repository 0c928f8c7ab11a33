"""What the tests of the database share."""

import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from ximler.embedded import server


@pytest.fixture
def forgotten_sockets() -> Iterator[None]:
    """The driver forgets a socket that is still connecting when its client is closed, and Python mentions each when it is
    collected: here, where a mark ignores it, and not in some other test."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
async def own_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[server.Server]:
    """A replica set with passwords that a test may kill and restart."""
    running = await server.start(tmp_path_factory.mktemp("own") / "data")
    yield running
    await running.stop()
