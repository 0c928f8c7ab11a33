"""The plans on offer, and the memory that a process keeps of all plans."""

from collections.abc import Iterable, Mapping

from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.schema.plan import PLANS, Plan

__all__ = ["PlanMemory", "plan_on_offer"]


async def plan_on_offer(database: Database, plan_id: str) -> Plan:
    """A plan that can be bought. Raises NotFound, Invalid for a free one."""
    plan = await database.plans.find_one({"id": plan_id})
    if plan is None or not plan.active:
        raise NotFound(f"There is no plan {plan_id[:60]!r} on offer")
    if plan.price_minor <= 0:
        raise Invalid.field("planId", f"{plan.name} is free: cancel the subscription to return to it")
    return plan


class PlanMemory:
    """All plans, read again only after one of them was written.

    They are used while the change feed is fresh; otherwise each call reads the database. Plans that were
    being read while one changed are used once and not kept.
    """

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._feed = feed
        self._kept: list[Plan] | None = None
        self._offered: tuple[list[Plan] | None, list[Plan]] = None, []  # all plans, and those of them on offer
        self._named: tuple[list[Plan] | None, dict[str, Plan]] = None, {}  # all plans, and the same by id
        self._writes = 0
        feed.subscribe([PLANS.name], lambda _: self._forget())
        feed.on_forget(lambda collection, _: self._forget() if collection == PLANS.name else None)
        feed.on_gap(self._forget)

    async def on_offer(self) -> list[Plan]:
        """Active plans, cheapest first: the same list until a plan changes. Public: no actor needed."""
        plans = await self._all()
        known, offered = self._offered
        if plans is not known:
            active = (plan for plan in plans if plan.active)
            offered = sorted(active, key=lambda plan: (plan.currency, plan.price, plan.id))
            self._offered = plans, offered
        return offered

    async def by_id(self, plan_ids: Iterable[str]) -> dict[str, Plan | None]:
        """`subscription.plan`, by the plan's own id."""
        known = self._by_id(await self._all())
        return {plan_id: known.get(plan_id) for plan_id in plan_ids}

    async def current(self) -> Mapping[str, Plan] | None:
        """All plans by id. None, without a round trip, while the feed is not fresh."""
        return self._by_id(await self._all()) if self._feed.fresh else None

    def _by_id(self, plans: list[Plan]) -> dict[str, Plan]:
        known, by_id = self._named
        if plans is not known:
            by_id = {plan.id: plan for plan in plans}
            self._named = plans, by_id
        return by_id

    async def _all(self) -> list[Plan]:
        if self._kept is not None and self._feed.fresh:
            return self._kept
        writes, listening = self._writes, self._feed.fresh
        found = await self._database.plans.find({"id": {"$gt": ""}})
        if listening and writes == self._writes:
            self._kept = found
        elif not listening:
            self._forget()  # the cached plans may be older than the ones just read
        return found

    def _forget(self) -> None:
        self._kept = None
        self._writes += 1
