"""Coupons: their terms, their validity, and how operators create and end them. Owns `coupons`.

Uses are reserved and confirmed in `billing.redemptions`, which also writes `usedCount`.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing.pricing import Discount
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, NotFound, XimlerError
from ximler.core.ids import Position
from ximler.core.money import Money
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.failures import DocumentExists
from ximler.schema.coupon import Coupon, CouponDuration, CouponType
from ximler.schema.plan import Plan

__all__ = [
    "CouponAlreadyUsed", "CouponExhausted", "CouponExpired", "CouponNotApplicable", "CouponNotFound", "create",
    "discount_of", "edit", "end", "find", "normalised", "page", "refusal", "usable_at",
]  # fmt: skip

_CODE = re.compile(r"[A-Z0-9][A-Z0-9_-]{1,39}")
_MAX_CODE = 64  # of other applications' coupons; ours are shorter
_MAX_PERIODS = 120


class CouponNotFound(NotFound):
    code = "COUPON_NOT_FOUND"


class CouponExpired(Conflict):
    """Not valid yet, expired, or ended by an operator."""

    code = "COUPON_EXPIRED"


class CouponExhausted(Conflict):
    code = "COUPON_EXHAUSTED"


class CouponAlreadyUsed(Conflict):
    code = "COUPON_ALREADY_USED"


class CouponNotApplicable(Conflict):
    """The coupon is for another plan or currency."""

    code = "COUPON_NOT_APPLICABLE"


def normalised(code: str) -> str:
    """The code as it is stored. Raises CouponNotFound for text that cannot be one."""
    code = code.strip().upper()
    if not 0 < len(code) <= _MAX_CODE or not code.isprintable():
        raise CouponNotFound(f"There is no coupon {code[:_MAX_CODE]!r}")
    return code


async def find(database: Database, code: str) -> Coupon:
    """Raises CouponNotFound."""
    code = normalised(code)
    coupon = await database.coupons.find_one({"code": code})
    if coupon is None:
        raise CouponNotFound(f"There is no coupon {code}")
    return coupon


def discount_of(coupon: Coupon) -> Discount:
    """The discount that pricing applies. Raises Invalid for terms that are no discount;
    other applications may store such."""
    currency, plans = coupon.currency.upper(), tuple(coupon.applicable_plans or ())
    match coupon.duration:
        case "FOREVER":
            renewals = None
        case "REPEATING":
            renewals = coupon.duration_periods or 1
        case _:
            renewals = 1
    if coupon.type == "PERCENTAGE":
        percent = Decimal(repr(coupon.value))
        return Discount(code=coupon.code, currency=currency, percent=percent, renewals=renewals, plans=plans)
    minor = Money.of(coupon.value, currency).minor
    return Discount(code=coupon.code, currency=currency, minor=minor, renewals=renewals, plans=plans)


def refusal(coupon: Coupon, plan: Plan, now: datetime) -> XimlerError | None:
    """The reason why the coupon cannot be used for the plan now, or None.
    Agrees with the filter `usable_at`."""
    currency = plan.currency.upper()
    if not coupon.active or not coupon.valid_from <= now < coupon.valid_until:
        return CouponExpired(f"The coupon {coupon.code} is not valid now")
    if coupon.applicable_plans and plan.id not in coupon.applicable_plans:
        return CouponNotApplicable(f"The coupon {coupon.code} is not for the plan {plan.name}")
    if coupon.type == "FIXED" and coupon.currency.upper() != currency:
        return CouponNotApplicable(
            f"The coupon {coupon.code} takes off {coupon.currency.upper()}, and the plan {plan.name} is paid in {currency}"
        )
    try:
        discount_of(coupon)
    except Invalid:
        return CouponNotApplicable(f"The coupon {coupon.code} is not a discount")
    if coupon.max_uses is not None and coupon.used_count >= coupon.max_uses:
        return CouponExhausted(f"The coupon {coupon.code} is used up")
    return None


def usable_at(code: str, plan: Plan, now: datetime, *, uses: int = 1) -> dict[str, Any]:
    """The filter that matches the coupon if it can be used for the plan now, `uses` more times."""
    currency = plan.currency.upper()
    currencies: list[str | None] = [currency, currency.lower()]
    if currency == "USD":
        currencies.append(None)  # the default
    return {
        "code": code,
        "active": {"$ne": False},
        "validFrom": {"$lte": now},
        "validUntil": {"$gt": now},
        "$and": [
            {"$or": [{"applicablePlans": plan.id}, {"applicablePlans": None}, {"applicablePlans": []}]},
            {
                "$or": [
                    {"type": "PERCENTAGE", "value": {"$gt": 0, "$lte": 100}},
                    {"type": "FIXED", "value": {"$gt": 0}, "currency": {"$in": currencies}},
                ]
            },
        ],
        "$expr": {
            "$or": [
                {"$eq": [{"$ifNull": ["$maxUses", None]}, None]},
                {"$lte": [{"$add": [{"$ifNull": ["$usedCount", 0]}, uses]}, "$maxUses"]},
            ]
        },
    }


async def create(
    database: Database,
    actor: Actor,
    *,
    code: str,
    name: str,
    type: CouponType,  # noqa: A002 (the field's own name)
    value: Decimal | float,
    currency: str = "USD",
    description: str | None = None,
    max_uses: int | None = None,
    valid_from: datetime | None = None,
    valid_until: datetime,
    applicable_plans: Sequence[str] = (),
    duration: CouponDuration = "ONCE",
    duration_periods: int | None = None,
) -> Coupon:
    """Create a coupon. Operators only; audited.

    Raises Invalid, which names the field as the APIs do (`maxUses`), and Conflict for a code in use.
    """
    actor.require_operator()
    coupon = Coupon(
        code=code.strip().upper(),
        name=name.strip(),
        description=description,
        type=type,
        value=_number(value),
        currency=currency.strip().upper(),
        max_uses=max_uses,
        valid_from=valid_from or database.clock.now(),
        valid_until=valid_until,
        applicable_plans=list(applicable_plans),
        duration=duration,
        duration_periods=duration_periods,
    )
    if not _CODE.fullmatch(coupon.code):
        raise Invalid.field("code", "2 to 40 letters, digits, hyphens and underscores, such as WELCOME20")
    await _check(database, coupon)

    async def write(transaction: Database) -> Coupon:
        made = await transaction.coupons.insert(coupon)
        await records.write(
            transaction,
            actor,
            Action.COUPON_CREATED,
            resource="coupons",
            resource_id=made.code,
            after=_terms(made),
        )
        return made

    try:
        return await database.transaction(write)
    except DocumentExists:
        raise Conflict(f"There is a coupon {coupon.code} already", fields={"code": f"{coupon.code} is taken"}) from None


async def edit(database: Database, actor: Actor, code: str, **changes: Any) -> Coupon:
    """Change a coupon's fields, by their Python names; its code stays. Operators only; audited.

    Subscriptions that have redeemed it keep the terms they redeemed. `max_uses` cannot fall below used plus
    reserved. Raises CouponNotFound, Invalid, and Conflict when it was changed at the same moment.
    """
    actor.require_operator()
    before = await find(database, code)
    known = set(_EDITABLE)
    if unknown := changes.keys() - known:
        raise Invalid.field(min(unknown), f"cannot be changed; there are {', '.join(sorted(known))}")
    if "value" in changes:
        changes["value"] = _number(changes["value"])
    after = msgspec.structs.replace(before, **changes)
    await _check(database, after)
    if after.max_uses is not None and after.max_uses < before.used_count:
        raise Invalid.field("maxUses", f"{after.max_uses} is less than the {before.used_count} uses there are")

    async def write(transaction: Database) -> Coupon:
        guard: dict[str, Any] = {"_id": before.id, "updatedAt": before.updated_at}
        if after.max_uses is not None:
            guard["usedCount"] = {"$not": {"$gt": after.max_uses}}
        values = {_EDITABLE[name]: getattr(after, name) for name in changes}
        changed = await transaction.coupons.find_and_patch(guard, {"$set": values})
        if changed is None:
            raise Conflict(f"The coupon {before.code} was used or changed at the same moment: try again")
        await records.write(
            transaction,
            actor,
            Action.COUPON_CHANGED,
            resource="coupons",
            resource_id=before.code,
            before={name: value for name, value in _terms(before).items() if name in values},
            after={name: value for name, value in _terms(changed).items() if name in values},
        )
        return changed

    return await database.transaction(write)


async def end(database: Database, actor: Actor, code: str) -> Coupon:
    """End the coupon. Existing reservations can still be confirmed. Operators only; audited."""
    actor.require_operator()
    coupon = await find(database, code)

    async def write(transaction: Database) -> Coupon:
        ended = await transaction.coupons.find_and_patch(
            {"_id": coupon.id, "active": {"$ne": False}}, {"$set": {"active": False}}
        )
        if ended is None:
            raise Conflict(f"The coupon {coupon.code} has ended already")
        await records.write(
            transaction,
            actor,
            Action.COUPON_ENDED,
            resource="coupons",
            resource_id=coupon.code,
            before={"active": True},
            after={"active": False},
        )
        return ended

    return await database.transaction(write)


async def page(
    database: Database, actor: Actor, *, active: bool | None = None, first: int = 20, after: Position | None = None
) -> Page[Coupon]:
    """Coupons, newest first. Operators only."""
    actor.require_operator()
    where: dict[str, Any] = {} if active is None else {"active": active}
    return await database.coupons.page(where, first=first, after=after)


# The fields that `edit` accepts: attribute → MongoDB's name.
_EDITABLE = {
    "name": "name",
    "description": "description",
    "type": "type",
    "value": "value",
    "currency": "currency",
    "max_uses": "maxUses",
    "valid_from": "validFrom",
    "valid_until": "validUntil",
    "applicable_plans": "applicablePlans",
    "duration": "duration",
    "duration_periods": "durationPeriods",
}


async def _check(database: Database, coupon: Coupon) -> None:
    """Raises Invalid for invalid terms. Called on every path that writes a coupon."""
    if not coupon.name.strip():
        raise Invalid.field("name", "is required")
    Money.of(0, coupon.currency)  # a currency that exists
    try:
        discount_of(coupon)
    except Invalid as error:
        raise Invalid.field("value", error.message.partition(": ")[2]) from None
    if coupon.max_uses is not None and coupon.max_uses < 1:
        raise Invalid.field("maxUses", f"{coupon.max_uses} is not a number of uses: 1 or more")
    if coupon.valid_until <= coupon.valid_from:
        raise Invalid.field("validUntil", "must be later than the start")
    if coupon.duration == "REPEATING":
        if coupon.duration_periods is None or not 1 <= coupon.duration_periods <= _MAX_PERIODS:
            raise Invalid.field("durationPeriods", f"a repeating coupon needs 1 to {_MAX_PERIODS} periods")
    elif coupon.duration_periods is not None:
        raise Invalid.field("durationPeriods", "is for repeating coupons")
    if coupon.applicable_plans:
        wanted = set(coupon.applicable_plans)
        found = {plan.id for plan in await database.plans.find({"id": {"$in": sorted(wanted)}})}
        if missing := wanted - found:
            raise Invalid.field("applicablePlans", f"there is no plan {', '.join(sorted(missing))}")


def _terms(coupon: Coupon) -> dict[str, Any]:
    values = {stored: getattr(coupon, name) for name, stored in _EDITABLE.items()}
    return {name: value for name, value in values.items() if value is not None}


def _number(value: Decimal | float) -> int | float:
    """The Number to store."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
