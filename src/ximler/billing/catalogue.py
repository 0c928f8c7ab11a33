"""The catalogue of plans, as operators manage it. Owns `plans`; `billing.plans` reads it.

A plan's price is for new subscribers: subscriptions keep the terms that they were bought with. Limits apply
to every subscriber at once. A retired plan is not on offer; its subscribers keep it. Id, currency and
interval never change.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound
from ximler.core.money import Money
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.metering.limits.plans import FREE_PLAN
from ximler.schema.plan import UNLIMITED, Interval, Plan, PlanLimits

__all__ = ["create", "edit", "every", "retire"]

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_MAX_NAME = 100
_MAX_TEXT = 1000
_MAX_FEATURES = 50
_MAX_TRIAL = 730  # days
_MOST = 10**12  # of a limit

# The fields that `edit` changes: attribute → MongoDB's name.
_EDITABLE = {
    "name": "name",
    "description": "description",
    "price": "price",
    "features": "features",
    "limits": "limits",
    "trial_days": "trialDays",
    "stripe_price_id": "stripePriceId",
    "active": "active",
}


async def every(database: Database, actor: Actor) -> list[Plan]:
    """All plans, also retired ones, cheapest first. Operators only. One command."""
    actor.require_operator()
    found = await database.plans.find({"id": {"$gt": ""}})
    return sorted(found, key=lambda plan: (not plan.active, plan.currency, plan.price, plan.id))


async def create(
    database: Database,
    actor: Actor,
    *,
    id: str,  # noqa: A002 (the field's own name)
    name: str,
    price: Decimal | float,
    interval: Interval,
    limits: Mapping[str, int | float],
    currency: str = "USD",
    description: str | None = None,
    features: Sequence[str] = (),
    trial_days: int | None = None,
    stripe_price_id: str | None = None,
) -> Plan:
    """Put a plan on offer. Operators only; audited.

    `limits` has `projects`, `storage` (GB of 10⁹ bytes) and `api_calls`; -1 is unlimited. Raises Invalid,
    which names the field as the APIs do (`trialDays`), and Conflict for an id in use.
    """
    actor.require_operator()
    plan = Plan(
        id=id.strip(),
        name=name.strip(),
        description=description,
        price=_number(price),
        currency=currency.strip().upper(),
        interval=interval,
        features=list(features),
        limits=_limits(limits),
        trial_days=trial_days,
        stripe_price_id=stripe_price_id,
    )
    if not _ID.fullmatch(plan.id):
        raise Invalid.field("id", "1 to 40 lowercase letters, digits, hyphens and underscores, such as pro-yearly")
    _check(plan)

    async def write(transaction: Database) -> Plan:
        made = await transaction.plans.insert(plan)
        await records.write(
            transaction, actor, Action.PLAN_CREATED, resource="plans", resource_id=made.id, after=_terms(made)
        )
        return made

    try:
        return await database.transaction(write)
    except DocumentExists:
        raise Conflict(f"There is a plan {plan.id} already", fields={"id": f"{plan.id} is taken"}) from None


async def edit(database: Database, actor: Actor, plan_id: str, **changes: Any) -> Plan:
    """Change a plan's fields, by their Python names. Operators only; audited.

    Of `limits` the given ones change. Raises NotFound, Invalid,
    and Conflict when it was changed at the same moment.
    """
    actor.require_operator()
    before = await _find(database, plan_id)
    if unknown := changes.keys() - _EDITABLE:
        raise Invalid.field(min(unknown), f"cannot be changed; there are {', '.join(sorted(_EDITABLE))}")
    if "price" in changes:
        changes["price"] = _number(changes["price"])
    if "limits" in changes:
        changes["limits"] = _limits(msgspec.structs.asdict(before.limits) | dict(changes["limits"]))
    after = msgspec.structs.replace(before, **changes)
    _check(after)
    values = {stored: value for stored, value in _terms(after).items() if value != _terms(before)[stored]}
    if not values:
        return before

    async def write(transaction: Database) -> Plan:
        unchanged = {"id": before.id, "updatedAt": before.updated_at}
        patch = {name: value for name, value in values.items() if name != "limits"}
        patch |= {f"limits.{name}": value for name, value in values.get("limits", {}).items()}
        changed = await transaction.plans.find_and_patch(unchanged, {"$set": patch})
        if changed is None:
            raise Conflict(f"The plan {before.id} was changed at the same moment: try again")
        action = Action.PLAN_EDITED if changed.active or not before.active else Action.PLAN_RETIRED
        old = {name: value for name, value in _terms(before).items() if name in values}
        await records.write(
            transaction, actor, action, resource="plans", resource_id=before.id, before=old, after=values
        )
        return changed

    return await database.transaction(write)


async def retire(database: Database, actor: Actor, plan_id: str) -> Plan:
    """Take a plan off the offer; its subscribers keep it. `edit(…, active=True)` offers it again. Audited."""
    return await edit(database, actor, plan_id, active=False)


async def _find(database: Database, plan_id: str) -> Plan:
    plan = await database.plans.find_one({"id": plan_id})
    if plan is None:
        raise NotFound(f"There is no plan {plan_id[:60]!r}")
    return plan


def _check(plan: Plan) -> None:
    """Raises Invalid for terms that no plan may have."""
    if not 0 < len(plan.name.strip()) <= _MAX_NAME:
        raise Invalid.field("name", f"1 to {_MAX_NAME} characters")
    if plan.description is not None and len(plan.description) > _MAX_TEXT:
        raise Invalid.field("description", f"is longer than {_MAX_TEXT:,} characters")
    if len(plan.features) > _MAX_FEATURES or any(not 0 < len(each) <= _MAX_NAME for each in plan.features):
        raise Invalid.field("features", f"{_MAX_FEATURES} at most, of 1 to {_MAX_NAME} characters each")
    try:
        price = Money.of(plan.price, plan.currency)
    except Invalid as error:
        if "currency" in error.fields:
            raise
        raise Invalid.field("price", error.message.partition(": ")[2]) from None
    if price.minor < 0:
        raise Invalid.field("price", f"{price} is negative")
    if plan.id == FREE_PLAN and (price.minor or not plan.active):
        field = "price" if price.minor else "active"
        raise Invalid.field(field, "users without a subscription have this plan: it stays on offer, and free")
    if plan.trial_days is not None and not 0 <= plan.trial_days <= _MAX_TRIAL:
        raise Invalid.field("trialDays", f"0 to {_MAX_TRIAL}")


def _limits(given: Mapping[str, int | float]) -> PlanLimits:
    for attribute, field in (("projects", "projects"), ("storage", "storage"), ("api_calls", "apiCalls")):
        value = given.get(attribute)
        if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
            raise Invalid.field(field, f"{value!r} is not a number")
        if not (value == UNLIMITED or 0 <= value <= _MOST):
            raise Invalid.field(field, f"{value} is no limit: 0 or more, or -1 for unlimited")
        if attribute != "storage" and value != int(value):
            raise Invalid.field(field, f"{value} is not a whole number")
    return PlanLimits(
        projects=int(given["projects"]), storage=_number(given["storage"]), api_calls=int(given["api_calls"])
    )


def _terms(plan: Plan) -> dict[str, Any]:
    """As they are stored."""
    limits = plan.limits
    values = {stored: getattr(plan, name) for name, stored in _EDITABLE.items()}
    shown = {"projects": limits.projects, "storage": limits.storage, "apiCalls": limits.api_calls}
    return values | {"limits": shown}


def _number(value: Decimal | float) -> int | float:
    """The Number to store: an int if it is whole."""
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise Invalid.field("price", f"{value} is not a price")
    return int(number) if number == number.to_integral_value() else float(number)
