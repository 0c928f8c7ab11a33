"""Applies changes of subscriptions and plans by other applications to entitlements.

Every process follows changed subscriptions, so none depends on another. Copying a plan's limits to all its
users, and checking every user, is limited to one process; it starts with all users, because changes may have
been missed while none ran. This is not urgent: the meter copies a plan's limit to the quotas in use in its
process, and checks that of each quota it takes up. Ximler's own changes arrive too and have no effect.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from bson import ObjectId

from ximler.core.errors import Unavailable, XimlerError
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.metering.limits import entitlements
from ximler.runtime import Part, background
from ximler.schema.plan import PLANS
from ximler.schema.subscription import SUBSCRIPTIONS

__all__ = ["Follower"]

_log = structlog.get_logger("ximler.metering")
_AGAIN_S = 5.0


@background
def _follower(*, database: Database, feed: Feed) -> tuple[Part, Part]:
    follower = Follower(database, feed)
    return Part("metering.follower", follower.follow), Part("metering.check", follower.check, lease=True)


class Follower:
    """`follow` runs in every process with the feed, `check` in one of them."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._subscriptions: set[ObjectId] = set()
        self._plans: set[ObjectId] = set()
        self._everybody = False
        self._changed = asyncio.Event()
        self._due = asyncio.Event()
        feed.subscribe([SUBSCRIPTIONS.name, PLANS.name], self._heard)
        feed.on_gap(self._missed)

    async def follow(self, stop: asyncio.Event) -> None:
        """Apply changed subscriptions until `stop` is set."""
        await self._keep(stop, self._changed, self._follow)

    async def check(self, stop: asyncio.Event) -> None:
        """Check all users, then apply changed plans, until `stop` is set."""
        self._missed()
        await self._keep(stop, self._due, self._check_all)

    async def heal(self) -> int:
        """Apply the changes delivered so far; returns the number of differences."""
        return await self._follow() + await self._check_all()

    async def _keep(self, stop: asyncio.Event, wake: asyncio.Event, work: Callable[[], Awaitable[int]]) -> None:
        while not await pause(stop, None, wake):
            wake.clear()
            try:
                await work()
            except Unavailable as error:
                _log.warning("entitlements not healed yet", reason=error.message)
                self._missed()
                await pause(stop, _AGAIN_S)
            except XimlerError as error:  # an unreadable plan or user
                _log.warning("entitlements not healed", reason=error.message)

    async def _follow(self) -> int:
        """Heal the users whose subscription has changed."""
        subscriptions, self._subscriptions = self._subscriptions, set()
        if not subscriptions:
            return 0
        try:
            found = await self._database.subscriptions.find({"_id": {"$in": list(subscriptions)}})
            return await entitlements.heal(self._database, [subscription.user_id for subscription in found])
        except BaseException:  # retried at the next change, or when the part is restarted
            self._subscriptions |= subscriptions
            raise

    async def _check_all(self) -> int:
        """Copy the limits of changed plans; or those of all plans, and heal all users."""
        plans, everybody = self._plans, self._everybody
        self._plans, self._everybody = set(), False
        if not (plans or everybody):
            return 0
        try:
            found = await self._database.plans.find({} if everybody else {"_id": {"$in": list(plans)}})
            count = sum([await entitlements.copy_plan(self._database, plan.id) for plan in found])
            return count + (await entitlements.heal_all(self._database) if everybody else 0)
        except BaseException:
            self._plans |= plans
            self._everybody |= everybody
            raise

    def _heard(self, change: Change) -> None:
        if change.operation == "delete":  # the event does not contain the user
            self._missed()
        elif change.collection == PLANS.name:
            self._plans.add(change.id)
            self._due.set()
        else:
            self._subscriptions.add(change.id)
            self._changed.set()

    def _missed(self) -> None:
        self._everybody = True
        self._due.set()
