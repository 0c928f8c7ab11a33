"""A process that meters."""

from collections.abc import AsyncIterator

import pytest

from ximler.database import Database
from ximler.metering.quota.meter import Meter


@pytest.fixture
async def meter(database: Database) -> AsyncIterator[Meter]:
    """One that sweeps when it is told to."""
    meter = Meter(database)
    yield meter
    await meter.close()
