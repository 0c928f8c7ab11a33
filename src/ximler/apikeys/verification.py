"""API key authentication: the owner and scopes of a key, from memory if it is cached, else by one read.

Malformed keys are rejected by checksum. A cached key costs a hash and a look-up; unknown keys are cached as
such, up to a bound. A key that is revoked, changed or expired, or whose owner is locked or has closed the
account, is rejected by every process within a second (see `database.cache`).
"""

import asyncio
import contextlib
from datetime import timedelta

import msgspec
from bson import ObjectId

from ximler.accounts import account_status
from ximler.accounts.account_status import AccountStatus
from ximler.apikeys import tokens
from ximler.core.clock import to_ms
from ximler.core.errors import Forbidden, Unauthenticated, Unavailable
from ximler.core.networks import Network, contains, parse_network
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.cache import Cache, Tag, Watch
from ximler.database.changes import Feed
from ximler.database.codec import codec_of
from ximler.schema.api_key import API_KEYS, ApiKey

__all__ = ["AddressRefused", "ApiKeyRefused", "Known", "Verifier"]

_USED_EVERY = timedelta(minutes=1)
_USED_EVERY_MS = 60_000
_WRITE_USED_EVERY_S = 5.0
_NEVER_MS = 1 << 62
_WATCHES = (Watch(collection=API_KEYS.name, by="keyHash", indifferent=frozenset({"lastUsed"})), *account_status.WATCHES)


class ApiKeyRefused(Unauthenticated):
    code = "API_KEY_REFUSED"


class AddressRefused(Forbidden):
    code = "ADDRESS_NOT_ALLOWED"


class Known(msgspec.Struct, kw_only=True):
    """A cached key. `used_ms` is when its last use was recorded; until `clear_ms` it needs no checks.

    `names` are the bytes of its id and its owner's, for counters in memory: an ObjectId's hash is computed on
    every use.
    """

    id: ObjectId
    user_id: ObjectId
    scopes: frozenset[str]
    expires_ms: int
    revoked: bool
    restricted: bool
    networks: tuple[Network, ...]
    account: AccountStatus | None
    used_ms: int
    clear_ms: int = 0
    names: tuple[bytes, bytes] = (b"", b"")

    def __post_init__(self) -> None:
        self.names = self.id.binary, self.user_id.binary


class Verifier:
    """One per process, on its change feed. `run` records when keys were used."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._clock = database.clock
        self._cache: Cache[str, Known] = Cache(feed, _WATCHES)
        self._used: set[ObjectId] = set()

    async def verify(self, key: str, *, address: str | None) -> Known:
        """The key, if it is valid from this address; `account` is its owner's. At most one round trip.

        Raises ApiKeyRefused, AddressRefused, AccountLocked.
        """
        known = self.known(key)
        return known if known is not None else await self._decide(key, address)

    def known(self, key: str | bytes) -> Known | None:
        """The cached key, if it needs no checks: it was admitted recently from any address and has not
        changed.
        """
        # Hashing is cheaper than the checksum, and most keys are cached.
        known = self._cache.peek(tokens.hash_of(key))
        return known if known.__class__ is Known and self._clock.now_ms() < known.clear_ms else None

    async def _decide(self, key: str, address: str | None) -> Known:
        digest = tokens.hash_of(key)
        known, now_ms = self._cache.peek(digest), self._clock.now_ms()
        if known is None:
            if not tokens.is_well_formed(key):
                raise ApiKeyRefused("This is not an API key: was it copied completely?")
            known = await self._cache.get(digest, self._load)
        if not isinstance(known, Known):
            raise ApiKeyRefused("This API key is unknown: it was never created here, or was deleted")
        return self._admit(known, now_ms, address)

    def _admit(self, known: Known, now_ms: int, address: str | None) -> Known:
        if known.revoked or known.expires_ms <= now_ms:
            raise ApiKeyRefused(f"This API key {'was revoked' if known.revoked else 'has expired'}: create a new one")
        if known.account is None:
            raise ApiKeyRefused("The account of this API key is closed")
        known.account.require_unlocked()
        if known.restricted and not contains(known.networks, address):
            raise AddressRefused(f"This API key may not be used from {address}")
        if now_ms - known.used_ms >= _USED_EVERY_MS:
            known.used_ms = now_ms
            self._used.add(known.id)
        if not known.restricted:
            known.clear_ms = min(known.expires_ms, known.used_ms + _USED_EVERY_MS)
        return known

    async def run(self, stop: asyncio.Event) -> None:
        """Write uses regularly until stopped, then the rest."""
        stopped = False
        while not stopped:
            stopped = await pause(stop, _WRITE_USED_EVERY_S)
            with contextlib.suppress(Unavailable):
                await self.write_used()

    async def write_used(self) -> None:
        """Set `lastUsed` of recently used keys, with at most one command, and once a minute per key across
        processes.
        """
        if not self._used:
            return
        used, self._used = self._used, set()
        now = self._clock.now()
        long_ago = [{"lastUsed": None}, {"lastUsed": {"$lte": now - _USED_EVERY}}]
        try:
            await self._database.api_keys.patch_many(
                {"_id": {"$in": list(used)}, "$or": long_ago}, {"$set": {"lastUsed": now}}
            )
        except Exception:
            self._used |= used
            raise

    async def _load(self, digest: str) -> tuple[Known | None, list[Tag]]:
        rows = await self._database.api_keys.aggregate(
            [{"$match": {"keyHash": digest}}, {"$limit": 1}, *account_status.lookups()]
        )
        if not rows:
            return None, [(API_KEYS.name, digest)]
        owner = account_status.read(rows[0])
        key = codec_of(ApiKey).decode(rows[0])
        known = Known(
            id=key.id,
            user_id=key.user_id,
            scopes=frozenset(key.permissions),
            expires_ms=_NEVER_MS if key.expires_at is None else to_ms(key.expires_at),
            revoked=key.revoked_at is not None,
            restricted=bool(key.allowed_addresses),
            networks=_networks(key.allowed_addresses),
            account=owner,
            used_ms=0 if key.last_used is None else to_ms(key.last_used),
        )
        return known, [(API_KEYS.name, key.id), *account_status.tags(key.user_id)]


def _networks(texts: list[str]) -> tuple[Network, ...]:
    """The valid networks. An invalid one, written by another application, admits no address and does not
    fail.
    """
    found = []
    for text in texts:
        with contextlib.suppress(ValueError):
            found.append(parse_network(text, strict=False))
    return tuple(found)
