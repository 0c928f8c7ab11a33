"""Topics: changes that clients follow, such as a user's new notifications, from the process's change feed.

A topic maps writes to keys, mostly users. Each write is an event with a position, which all processes agree
on, so a client that connects again, to any of them, names the last event that it has and receives the later
ones. A process keeps the last events of each topic that was ever followed in it. Where those no longer reach
back far enough, after a gap in the feed, and where a follower is too slow, it receives `RESYNC` in their
place: it may have missed events.

Events have no values. Readers load current ones,
so an event may show a later state than the write that it reports.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ximler.core.actor import Actor
from ximler.core.streams import RESYNC, Event, Inbox, Position, Streams
from ximler.database.changes import Change, Feed

__all__ = ["Follower", "Topic", "Topics"]

_KEPT = 5_000  # events of a topic, for clients that connect again
_MAX_WAITING = 256


class Topic(NamedTuple):
    """`keys` gives, by collection, the key of a write; None for writes that are no event of the topic.

    Of a topic without `each`, one event stands for those before it:
    followers receive the last, and never `RESYNC`.
    """

    name: str
    keys: Mapping[str, Callable[[Change], Hashable | None]]
    each: bool = True


class Follower(Inbox[Event]):
    """Of one key. `after` is the position of the last event that its client has."""

    def __init__(self, *, each: bool, after: Position | None = None) -> None:
        super().__init__()
        self._each = each
        self._after = after

    def add(self, event: Event) -> None:
        if event.position is not None:
            if self._after is not None and event.position <= self._after:
                return
            self._after = event.position
        if not self._each:
            self._events.clear()
            event = Event(*event)
        elif len(self._events) >= _MAX_WAITING:
            self._events.clear()
            event = RESYNC
        self._events.append(event)
        self._wake.set()


class _Shelf:
    """A topic's events in this process, and who follows them."""

    def __init__(self) -> None:
        self.kept: deque[Event] = deque(maxlen=_KEPT)
        self.followers: dict[Hashable, set[Follower]] = {}


class Topics:
    """One per process, on its feed. A topic's collections are watched from its first follower on."""

    def __init__(self, feed: Feed, streams: Streams) -> None:
        self._feed = feed
        self._streams = streams
        self._shelves: dict[str, _Shelf] = {}
        feed.on_gap(self._gap)

    @property
    def followers(self) -> int:
        return sum(len(found) for shelf in self._shelves.values() for found in shelf.followers.values())

    @contextmanager
    def follow(self, actor: Actor, topic: Topic, key: Hashable, after: Position | None = None) -> Iterator[Follower]:
        """A follower of the events from now on, or of those after `after`. Raises as `Streams.admit`."""
        with self._streams.open(actor, Follower(each=topic.each, after=after)) as follower:
            shelf = self._shelves.get(topic.name) or self._watch(topic)
            if after is not None:
                if not shelf.kept or shelf.kept[0].position > after:  # type: ignore[operator]  # kept events have one
                    follower.add(RESYNC)
                for event in shelf.kept:
                    if event.key == key:
                        follower.add(event)
            shelf.followers.setdefault(key, set()).add(follower)
            try:
                yield follower
            finally:
                of_key = shelf.followers[key]
                of_key.discard(follower)
                if not of_key:
                    del shelf.followers[key]

    def _watch(self, topic: Topic) -> _Shelf:
        shelf = self._shelves[topic.name] = _Shelf()

        def heard(change: Change) -> None:
            key = topic.keys[change.collection](change)
            if key is not None:
                event = Event(change.position, key, change.id)
                shelf.kept.append(event)
                for follower in shelf.followers.get(key, ()):
                    follower.add(event)

        self._feed.subscribe(topic.keys, heard)
        return shelf

    def _gap(self) -> None:
        for shelf in self._shelves.values():
            shelf.kept.clear()
            for followers in shelf.followers.values():
                for follower in followers:
                    follower.add(RESYNC)
