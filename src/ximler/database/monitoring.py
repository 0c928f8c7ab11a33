"""Monitoring of the database connection: Prometheus metrics, a log line per change of state, counted round
trips.

PyMongo calls these listeners synchronously, so they only add numbers. Imported before any metric is created,
so that `PROMETHEUS_MULTIPROC_DIR` (set by `ximler up --workers N`) can sum them over processes.
"""

import collections
from contextvars import ContextVar
from datetime import UTC
from typing import Any

import cachebox
import structlog
from prometheus_client import Counter, Gauge, Histogram
from pymongo import monitoring

from ximler.core.clock import Clock
from ximler.database.failures import reason

__all__ = ["UNREADABLE", "ConnectionState", "RoundTrip", "first_time", "listeners", "round_trips"]

_log = structlog.get_logger("ximler.database")

COMMANDS = Histogram(
    "ximler_database_command_seconds",
    "Time from sending a command to its answer.",
    ("collection", "verb"),
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.025, 0.1, 1, 10),
)
FAILURES = Counter("ximler_database_command_failures_total", "Commands that failed.", ("collection", "verb"))
POOL = Gauge("ximler_database_pool_connections", "Connections, by state.", ("state",), multiprocess_mode="livesum")
CHECKOUT = Histogram(
    "ximler_database_pool_wait_seconds",
    "Wait for a connection.",
    buckets=(0.0001, 0.001, 0.01, 0.1, 1, 10),
)
CHECKOUT_FAILURES = Counter("ximler_database_pool_wait_failures_total", "Waits for a connection that failed.")
UP = Gauge("ximler_database_up", "Processes that see a primary.", multiprocess_mode="livesum")
SERVERS = Gauge("ximler_database_servers", "Known servers, by type.", ("type",), multiprocess_mode="livemax")
UNREADABLE = Counter("ximler_database_unreadable_documents_total", "Documents left out of a list.", ("collection",))
FORGIVEN = Counter(
    "ximler_database_ignored_fields_total", "Stored values of a wrong type, read as the default.", ("document", "field")
)

_logged: "cachebox.TTLCache[tuple[str, str], bool]" = cachebox.TTLCache(10_000, 3600.0)
# Sent once for each collection at the start:
# measured together, or they are most lines of a fresh server's metrics.
_OF_SETUP = frozenset({"create", "createIndexes", "listIndexes"})
_IN_FLIGHT = 5000  # more than any pool has connections

RoundTrip = tuple[str, str]  # (verb, collection)
_recording: ContextVar[tuple[list[RoundTrip], ...]] = ContextVar("ximler_round_trips", default=())


class round_trips:  # noqa: N801 (used as a function is)
    """Record every command sent inside the block, by this task and those it starts: the cost of a journey."""

    __slots__ = ("_token",)

    def __enter__(self) -> list[RoundTrip]:
        trips: list[RoundTrip] = []
        self._token = _recording.set((*_recording.get(), trips))
        return trips

    def __exit__(self, *_: object) -> None:
        _recording.reset(self._token)


def first_time(collection: str, document_id: Any) -> bool:
    """Whether a problem of this document was not logged by this process in the last hour; it counts as logged
    from now on.
    """
    key = collection, str(document_id)
    if key in _logged:
        return False
    _logged[key] = True
    return True


class ConnectionState:
    """Whether a primary is in sight, for `/readyz`. Logs each change once; closing does not count as one."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._log_first = _log.debug if quiet else _log.info
        self.connected = False
        self.closing = False
        self.was_connected = False

    def changed(self, *, connected: bool) -> None:
        if connected == self.connected or self.closing:
            return
        self.connected = connected
        UP.set(int(connected))
        if not connected:
            _log.warning("database disconnected")
        elif self.was_connected:
            _log.info("database reconnected")
        else:
            self._log_first("database connected")
        self.was_connected = self.was_connected or connected


def listeners(state: ConnectionState, clock: Clock) -> list[Any]:
    return [_Commands(), _Pool(), _Topology(state), _Heartbeats(state, clock)]


class _Commands(monitoring.CommandListener):
    def __init__(self) -> None:
        self._places: dict[int, tuple[str, str]] = {}
        self._metrics: dict[tuple[str, str], Any] = {}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        verb = event.command_name
        target = event.command.get("collection") if verb == "getMore" else event.command.get(verb)
        collection = target if isinstance(target, str) else ""
        self._places[event.request_id] = (collection, verb)
        if len(self._places) > _IN_FLIGHT:
            # A cancelled command is never reported as finished: the oldest are dropped.
            del self._places[next(iter(self._places))]
        recording = _recording.get()
        if recording and not verb.startswith("sasl"):  # authentication of a new pooled connection does not count
            for trips in recording:
                trips.append((verb, collection))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        place = self._places.pop(event.request_id, None)
        if place is None:
            return
        metric = self._metrics.get(place)
        if metric is None:
            metric = self._metrics[place] = COMMANDS.labels("" if place[1] in _OF_SETUP else place[0], place[1])
        metric.observe(event.duration_micros / 1e6)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        place = self._places.pop(event.request_id, None)
        if place is not None:
            FAILURES.labels(*place).inc()


class _Pool(monitoring.ConnectionPoolListener):
    def __init__(self) -> None:
        self._open = POOL.labels("open")
        self._used = POOL.labels("checked_out")

    def connection_created(self, event: monitoring.ConnectionCreatedEvent) -> None:
        self._open.inc()

    def connection_closed(self, event: monitoring.ConnectionClosedEvent) -> None:
        self._open.dec()

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        self._used.inc()
        CHECKOUT.observe(event.duration or 0)

    def connection_checked_in(self, event: monitoring.ConnectionCheckedInEvent) -> None:
        self._used.dec()

    def connection_check_out_failed(self, event: monitoring.ConnectionCheckOutFailedEvent) -> None:
        CHECKOUT_FAILURES.inc()

    def connection_check_out_started(self, event: monitoring.ConnectionCheckOutStartedEvent) -> None: ...
    def connection_ready(self, event: monitoring.ConnectionReadyEvent) -> None: ...
    def pool_cleared(self, event: monitoring.PoolClearedEvent) -> None: ...
    def pool_closed(self, event: monitoring.PoolClosedEvent) -> None: ...
    def pool_created(self, event: monitoring.PoolCreatedEvent) -> None: ...
    def pool_ready(self, event: monitoring.PoolReadyEvent) -> None: ...


class _Topology(monitoring.TopologyListener):
    def __init__(self, state: ConnectionState) -> None:
        self._state = state
        self._counts: collections.Counter[str] = collections.Counter()

    def description_changed(self, event: monitoring.TopologyDescriptionChangedEvent) -> None:
        servers = event.new_description.server_descriptions().values()
        self._count(collections.Counter(server.server_type_name for server in servers))
        was, now = event.previous_description.has_writable_server(), event.new_description.has_writable_server()
        if now or was:  # no change before the first answer of a server
            self._state.changed(connected=now)

    def opened(self, event: monitoring.TopologyOpenedEvent) -> None: ...

    def closed(self, event: monitoring.TopologyClosedEvent) -> None:
        self._count(collections.Counter())

    def _count(self, counts: collections.Counter[str]) -> None:
        """Adds the difference: other clients of the process count their own servers."""
        for kind in counts.keys() | self._counts.keys():
            SERVERS.labels(kind).inc(counts[kind] - self._counts[kind])
        self._counts = counts


class _Heartbeats(monitoring.ServerHeartbeatListener):
    """Keeps the clock at the primary's, and logs the first of consecutive failures."""

    def __init__(self, state: ConnectionState, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._failing: set[Any] = set()

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None: ...

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
        self._failing.discard(event.connection_id)
        reply = event.reply
        if reply.is_writable and (local := reply.document.get("localTime")):
            self._clock.observe(local if local.tzinfo else local.replace(tzinfo=UTC))

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        # Before the first connection, `connect` reports the failure.
        if event.connection_id not in self._failing and self._state.was_connected:
            self._failing.add(event.connection_id)
            host, port = event.connection_id
            _log.warning("database error", server=f"{host}:{port}", error=reason(event.reply))
