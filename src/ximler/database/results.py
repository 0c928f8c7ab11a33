"""Results of slow queries, which all processes share in Valkey (`VALKEY_URL`).

The key of a result is made of the actor, their scopes, the query's name and arguments, and the release:
actors do not share results. A result depends on the collections that its query reads. The position of a
collection is its latest write in the change feed, the same in every process; a result is used until one of
its collections has a later position. So a result is as late as the feed, which is milliseconds; while the
feed is not fresh, results are computed. Results that no write invalidates expire after 15 seconds; those that
follow the feed are kept for a minute.

Of the same query at the same time one is computed: in a process in any case, of all processes for up to 50
ms. A result is stored unless a write was reported since its query began, and only if it took 2 ms or longer.
Names and results are authenticated by a key of the installation's, so that others who write to Valkey can
neither forge a result nor pass off one as another's. They can withhold results, and keep old ones in use.

Not here: time-outs and failures (`database.valkey`).
"""

import asyncio
import hmac
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from secrets import token_hex
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import cachebox
import msgspec
from bson import ObjectId
from prometheus_client import Counter

from ximler import __version__
from ximler.core.actor import Actor
from ximler.database.changes import Change, Feed
from ximler.database.valkey import TIMEOUT_S, Script, Valkey

__all__ = ["Counts", "Kind", "Results", "counts"]

T = TypeVar("T")

_SLOW_S = 0.002  # less costs about as much as asking Valkey
_QUICK_S = 60.0  # for how long a query that took less is not asked for
_LARGEST = 250_000  # bytes
_FOLLOWING_MS, _EXPIRING_MS = 60_000, 15_000
_LOCKED_MS = 1_000
_MAC = 32  # bytes before a result
_POLL_S = 0.005
_REQUESTS = Counter("ximler_results_total", "Requests for results that Valkey keeps.", ("result", "outcome"))

# KEYS: the state of the kind, the result, its lock. ARGV: a number, the asking process's position, the lock's
# owner and milliseconds. Returns the number and a result, or nothing and whether the asker is to compute it.
_FIND = Script("""
local position = redis.call('HGET', KEYS[1], 'position')
if not position or position < ARGV[2] then
  position = ARGV[2]
  redis.call('HSET', KEYS[1], 'position', position)
end
local found = redis.call('HMGET', KEYS[2], 'position', 'value')
if found[1] == position then
  redis.call('HINCRBY', KEYS[1], 'hits', 1)
  return {ARGV[1], found[2], 0, position}
end
local mine = redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', ARGV[4])
if mine then redis.call('HINCRBY', KEYS[1], 'misses', 1) end
return {ARGV[1], false, mine and 1 or 0, position}
""")
# KEYS: as above. ARGV: a number, the position at which the query began, the asking process's now, the lock's
# owner, the milliseconds to keep the result, and the result; empty to only unlock.
_STORE = Script("""
if redis.call('GET', KEYS[3]) == ARGV[4] then redis.call('DEL', KEYS[3]) end
if ARGV[6] == '' or ARGV[3] > ARGV[2] or redis.call('HGET', KEYS[1], 'position') ~= ARGV[2] then return {ARGV[1], 0} end
redis.call('HSET', KEYS[2], 'position', ARGV[2], 'value', ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {ARGV[1], 1}
""")
_COUNTS = Script("""
local found = redis.call('HMGET', KEYS[1], 'hits', 'misses')
return {ARGV[1], found[1] or 0, found[2] or 0}
""")


class Kind(NamedTuple):
    """Results of one query. `reads` names the collections that it depends on;
    without any, results only expire."""

    name: str
    reads: frozenset[str] = frozenset()


class Counts(NamedTuple):
    hits: int
    misses: int


class Results:
    """One per process, on its change feed, for these kinds."""

    def __init__(self, valkey: Valkey, feed: Feed, kinds: Collection[Kind], *, secret: bytes) -> None:
        self._secret = secret
        self._valkey = valkey
        self._feed = feed
        self._positions: dict[str, str] = {}  # by collection; absent: no write since the feed began
        self._began = ""  # a position before which anything may have been written
        self._flights: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self._storing: set[asyncio.Task[Any]] = set()
        self._quick: cachebox.TTLCache[str, bool] = cachebox.TTLCache(10_000, _QUICK_S)
        feed.subscribe(frozenset().union(*(kind.reads for kind in kinds)), self._heard)
        feed.on_gap(self._gap)

    async def get(
        self, kind: Kind, actor: Actor, arguments: Mapping[str, Any], load: Callable[[], Awaitable[T]], *, of: Any
    ) -> T:
        """The result of `load`, or the one of an earlier call by the same actor.
        `of` is its type. Raises as `load`."""
        key = _key(self._secret, kind, actor, arguments)
        position = self._position(kind)
        if position is None or key in self._quick:
            _REQUESTS.labels(kind.name, "bypassed").inc()
            return await load()
        flight = self._flights.get((key, position))
        if flight is None:
            flight = asyncio.ensure_future(self._find(kind, key, position, load, of))
            self._flights[key, position] = flight
            flight.add_done_callback(lambda done: self._landed(key, position, done))
        result: T = await asyncio.shield(flight)
        return result

    async def close(self) -> None:
        """Wait for results that are being stored."""
        if self._storing:
            await asyncio.wait(self._storing, timeout=4 * TIMEOUT_S)

    async def _find(self, kind: Kind, key: str, position: str, load: Callable[[], Awaitable[T]], of: Any) -> T:
        state = f"{self._valkey.prefix}:results:{{{kind.name}}}"  # braces: on a cluster, a kind is on one node
        keys = [state, f"{state}:{key}", f"{state}:{key}:lock"]
        owner = token_hex(8)
        found = await self._ask(keys, position, owner)
        if found is None:
            _REQUESTS.labels(kind.name, "bypassed").inc()
            return await load()
        if found[0] is not None:
            mac, packed = found[0][:_MAC], found[0][_MAC:]
            if not hmac.compare_digest(mac, self._authenticate(key, found[2], packed)):
                _REQUESTS.labels(kind.name, "forged").inc()
                return await load()
            result: T = msgspec.msgpack.decode(packed, type=of, dec_hook=_decoded)
            _REQUESTS.labels(kind.name, "hit").inc()
            return result
        _REQUESTS.labels(kind.name, "miss").inc()
        value = b""
        began = monotonic()
        try:
            made = await load()
            if monotonic() - began < _SLOW_S:
                self._quick[key] = True
            else:
                packed = msgspec.msgpack.encode(made, enc_hook=_encoded)
                value = self._authenticate(key, found[2], packed) + packed
        finally:
            last_ms = _FOLLOWING_MS if kind.reads else _EXPIRING_MS
            kept_ms = int(last_ms * random.uniform(0.8, 1))  # noqa: S311 (so that they do not expire together)
            args = [found[2], self._position(kind) or "~", owner, kept_ms, value if len(value) <= _LARGEST else b""]
            storing = asyncio.ensure_future(self._valkey.ask(_STORE, keys, args))  # the caller does not wait for it
            self._storing.add(storing)
            storing.add_done_callback(self._storing.discard)
        return made

    async def _ask(self, keys: list[str], position: str, owner: str) -> list[Any] | None:
        """A result, or the permission to compute it.
        Waits for another process, at most as long as for Valkey."""
        until = monotonic() + TIMEOUT_S
        while True:
            found = await self._valkey.ask(_FIND, keys, [position, owner, _LOCKED_MS])
            if found is None or found[0] is not None or int(found[1]) or monotonic() + 2 * _POLL_S > until:
                return found
            await asyncio.sleep(_POLL_S)

    def _authenticate(self, key: str, position: bytes, packed: bytes) -> bytes:
        return hmac.digest(self._secret, b"%s %s %s" % (key.encode(), position, packed), "sha256")

    def _position(self, kind: Kind) -> str | None:
        """None while the feed is not fresh."""
        if not kind.reads:
            return "-"
        if not self._feed.fresh:
            return None
        self._began = self._began or self._feed.position
        return max(self._began, *(self._positions.get(name, "") for name in kind.reads))

    def _landed(self, key: str, position: str, done: "asyncio.Task[Any]") -> None:
        del self._flights[key, position]
        if not done.cancelled():
            done.exception()  # retrieved also if every caller has left

    def _heard(self, change: Change) -> None:
        self._positions[change.collection] = change.position
        self._began = self._began or change.position  # the same in every process that heard it

    def _gap(self) -> None:
        self._positions.clear()
        self._began = ""


async def counts(valkey: Valkey, kinds: Collection[Kind]) -> dict[str, Counts] | None:
    """Results that were found, and that were computed, by all processes since Valkey began.
    None if it does not answer."""
    found = {}
    for kind in kinds:
        answer = await valkey.ask(_COUNTS, [f"{valkey.prefix}:results:{{{kind.name}}}"], [])
        if answer is None:
            return None
        found[kind.name] = Counts(int(answer[0]), int(answer[1]))
    return found


def _key(secret: bytes, kind: Kind, actor: Actor, arguments: Mapping[str, Any]) -> str:
    who = (actor.kind, actor.via, actor.user_id, actor.member_id, actor.api_key_id, sorted(actor.scopes))
    asked = (__version__, kind.name, who, sorted(arguments.items()))
    return hmac.digest(secret, msgspec.msgpack.encode(asked, enc_hook=_encoded), "sha256").hex()


def _encoded(value: Any) -> Any:
    if isinstance(value, ObjectId):
        return value.binary
    raise NotImplementedError(f"{type(value).__name__} cannot be stored")


def _decoded(of: type, value: Any) -> Any:
    if of is ObjectId:
        return ObjectId(value)
    raise NotImplementedError(f"{of.__name__} cannot be read")
