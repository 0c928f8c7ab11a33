"""Applies changes of subscriptions and plans by other applications to entitlements, within a second of their commit.

Every process follows the changes that its feed delivers, so none depends on another. Checking every user, or every user of a
plan, is left to one process: it begins with everybody, because changes may have been missed while none ran. Ximler's own
changes arrive too and make no difference.
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
    """`follow` runs in every process beside the feed, `check` in one of them."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._subscriptions: set[ObjectId] = set()
        self._plans: set[ObjectId] = set()
        self._all_plans = False
        self._heard_of = asyncio.Event()
        self._on_plans: set[str] = set()  # whose users' entitlements are to be looked at
        self._everybody = False
        self._due = asyncio.Event()
        feed.subscribe([SUBSCRIPTIONS.name, PLANS.name], self._heard)
        feed.on_gap(self._missed)

    async def follow(self, stop: asyncio.Event) -> None:
        """Apply changed subscriptions and plan limits until `stop` is set. At first, and after an error, all limits."""
        self._all_plans = True
        self._heard_of.set()
        await self._keep(stop, self._heard_of, self._follow)

    async def check(self, stop: asyncio.Event) -> None:
        """Check everybody, then the users of plans that change, until `stop` is set."""
        self._everybody = True
        self._due.set()
        await self._keep(stop, self._due, self._look_through)

    async def heal(self) -> int:
        """Look at what was heard of since; returns for how many users it made a difference."""
        return await self._follow() + await self._look_through()

    async def _keep(self, stop: asyncio.Event, wake: asyncio.Event, work: Callable[[], Awaitable[int]]) -> None:
        while not await pause(stop, None, wake):
            wake.clear()
            try:
                await work()
            except Unavailable as error:
                _log.warning("entitlements wait to be healed", reason=error.message)
                self._missed()
                await pause(stop, _AGAIN_S)
            except XimlerError as error:  # one plan or user that cannot be made sense of
                _log.warning("entitlements not healed", reason=error.message)

    async def _follow(self) -> int:
        """The users whose subscription has changed, and the limits of plans that have."""
        subscriptions, plans, all_plans = self._subscriptions, self._plans, self._all_plans
        self._subscriptions, self._plans, self._all_plans = set(), set(), False
        try:
            if plans or all_plans:
                for plan in await self._database.plans.find({} if all_plans else {"_id": {"$in": list(plans)}}):
                    await entitlements.copy_limit(self._database, plan.id)
                    self._on_plans.add(plan.id)
                self._due.set()
            if not subscriptions:
                return 0
            found = await self._database.subscriptions.find({"_id": {"$in": list(subscriptions)}})
            return await entitlements.heal(self._database, [subscription.user_id for subscription in found])
        except BaseException:  # due again at the next change, or when the part is restarted
            self._subscriptions |= subscriptions
            self._plans |= plans
            self._all_plans |= all_plans
            raise

    async def _look_through(self) -> int:
        """Everybody on these plans, or everybody."""
        plans, everybody = self._on_plans, self._everybody
        self._on_plans, self._everybody = set(), False
        try:
            if everybody:
                return await entitlements.heal_plan(self._database)
            return sum([await entitlements.heal_plan(self._database, plan_id) for plan_id in plans])
        except BaseException:
            self._on_plans |= plans
            self._everybody |= everybody
            raise

    def _heard(self, change: Change) -> None:
        if change.operation == "delete":  # the event does not say whose it was
            self._everybody = True
            self._due.set()
            return
        (self._plans if change.collection == PLANS.name else self._subscriptions).add(change.id)
        self._heard_of.set()

    def _missed(self) -> None:
        self._all_plans = self._everybody = True
        self._heard_of.set()
        self._due.set()
