"""The plans on offer."""

from ximler.database import Database
from ximler.schema.plan import Plan

__all__ = ["on_offer"]


async def on_offer(database: Database) -> list[Plan]:
    """Active plans, cheapest first. For everybody: no actor needed."""
    return sorted(await database.plans.find({"active": True}), key=lambda plan: (plan.currency, plan.price, plan.id))
