"""Following what other applications change of subscriptions and plans, so that it holds within a second as our own changes do.

What was missed while nobody listened is looked for when somebody begins to. Changes of ours come by too: they are recognised
by making no difference.
"""

import asyncio

import structlog
from bson import ObjectId

from ximler.core.errors import Unavailable, XimlerError
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.metering import entitlements
from ximler.schema.plan import PLANS
from ximler.schema.subscription import SUBSCRIPTIONS

__all__ = ["Follower"]

_log = structlog.get_logger("ximler.metering")
_AGAIN_S = 5.0


class Follower:
    """`run` it beside the feed, in at least one process."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._subscriptions: set[ObjectId] = set()
        self._plans: set[ObjectId] = set()
        self._everybody = False
        self._wake = asyncio.Event()
        feed.subscribe([SUBSCRIPTIONS.name, PLANS.name], self._heard)
        feed.on_gap(self._missed)

    async def run(self) -> None:
        """Heal whatever was heard of, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.heal()
            except Unavailable as error:
                _log.warning("entitlements wait to be healed", reason=error.message)
                self._missed()
                await asyncio.sleep(_AGAIN_S)
            except XimlerError as error:  # one plan or user that cannot be made sense of
                _log.warning("entitlements not healed", reason=error.message)
            except Exception as bug:  # or nothing would be healed any more
                _log.exception("healing failed", exc_info=bug)

    async def heal(self) -> int:
        """Look at what was heard of since; returns for how many users it made a difference."""
        subscriptions, plans, everybody = self._subscriptions, self._plans, self._everybody
        self._subscriptions, self._plans, self._everybody = set(), set(), False
        if everybody:
            return await entitlements.heal_plan(self._database)
        count = 0
        if subscriptions:
            found = await self._database.subscriptions.find({"_id": {"$in": list(subscriptions)}})
            count += await entitlements.heal(self._database, [subscription.user_id for subscription in found])
        if plans:
            for plan in await self._database.plans.find({"_id": {"$in": list(plans)}}):
                count += await entitlements.heal_plan(self._database, plan.id)
        return count

    def _heard(self, change: Change) -> None:
        if change.operation == "delete":  # whose it was is not told
            self._everybody = True
        elif change.collection == PLANS.name:
            self._plans.add(change.id)
        else:
            self._subscriptions.add(change.id)
        self._wake.set()

    def _missed(self) -> None:
        self._everybody = True
        self._wake.set()
