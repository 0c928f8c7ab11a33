"""A real Mongoose application beside Ximler: `app` speaks for one on the test's database, `unbound` for one
that leaves Usage's collection to Mongoose. One node process serves the whole session.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.mongoose.peer import Application, Peer

from ximler.database import Database


@pytest.fixture(scope="session")
async def peer(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Peer]:
    peer = await Peer.start(mongodb_uri, tmp_path_factory.mktemp("mongoose"))
    yield peer
    await peer.close()


@pytest.fixture(scope="session")
async def models(peer: Peer) -> dict[str, dict[str, Any]]:
    """The models' account of themselves, by name: collection, timestamps, fields, indexes."""
    return {model["name"]: model for model in await peer.ask("describe", database="none")}


@pytest.fixture
def app(peer: Peer, database: Database) -> Application:
    """On `database`, with Usage bound to `usage`."""
    return Application(peer, database.name, unbound=False)


@pytest.fixture
def unbound(peer: Peer, database: Database) -> Application:
    """On `database`, with Usage where Mongoose puts it."""
    return Application(peer, database.name, unbound=True)


@pytest.fixture
def empty_app(peer: Peer, empty_database: Database) -> Application:
    """On `empty_database`, with Usage bound to `usage`."""
    return Application(peer, empty_database.name, unbound=False)
