"""Limits over all networks on documents that callers without an account cause.

`throttle` limits each address and the network around it. An attacker with many networks still fills a
collection up to its limit here. Then the oldest documents of the networks with the most documents are
removed, and nothing is refused: the flood removes itself, and a registration from elsewhere stays. A limit
that refuses would close registration to everybody. (Bitcoin Core evicts connections by network group for the
same reason: `src/node/eviction.cpp`.)

Between two runs of the job a collection may exceed its limit by the documents of a minute.
"""

from datetime import timedelta

import structlog

from ximler.accounts.keyring import Keyring
from ximler.audit import refusals
from ximler.core.clock import EPOCH
from ximler.core.networks import around
from ximler.database import Database, outbox
from ximler.schema.registration import REGISTRATIONS
from ximler.schema.reply import REPLIES
from ximler.schema.throttle import THROTTLES

__all__ = ["MOST", "network", "trim"]

_log = structlog.get_logger("ximler.accounts")
MOST = {"registrations": 100_000, "outbox": 100_000, "replies": 100_000, "refusals": 100_000, "throttles": 500_000}
_ALL = {"expiresAt": {"$gt": EPOCH}}
_NEWEST = [("expiresAt", -1)]


def network(keyring: Keyring, address: str | None) -> str:
    """A keyed hash of the /16 of an address, or the /32 of an IPv6 address, which a provider has."""
    return keyring.digest("network", around(address, ipv4=16, ipv6=32)).hex()[:16]


@outbox.every("accounts.trim", timedelta(minutes=1))
async def trim(*, database: Database) -> dict[str, int]:
    """Remove the documents above the limits; returns how many of each collection. Five commands if there are
    none.
    """
    anonymous = {"network": {"$type": "string"}}
    # Counters of single attempts come last. Those that block somebody have counted several.
    count = [("count", -1), *_NEWEST]
    removed = {
        "registrations": await database[REGISTRATIONS].trim(
            MOST["registrations"], where=_ALL, order=_NEWEST, by="network"
        ),
        "replies": await database[REPLIES].trim(MOST["replies"], where=anonymous, order=_NEWEST, by="network"),
        "throttles": await database[THROTTLES].trim(MOST["throttles"], where=_ALL, order=count),
        "refusals": await refusals.trim(database, MOST["refusals"]),
        "outbox": await outbox.trim(database, MOST["outbox"]),
    }
    for collection, number in removed.items():
        if number:
            _log.warning("documents of strangers removed", collection=collection, number=number)
    return removed
