"""What a customer and an accountant see of a user's billing,
in a form that two histories can be compared in."""

from collections import Counter
from datetime import datetime
from typing import Any

from bson import ObjectId
from tests.billing.conftest import moved, notices

from ximler.analytics import rollups
from ximler.billing import drifts, movements
from ximler.billing.account import recurring
from ximler.billing.verify import verify
from ximler.database import Database
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.charge import CHARGES
from ximler.schema.invoice import INVOICES
from ximler.schema.refund import REFUNDS

__all__ = ["at_rest", "state"]


async def at_rest(database: Database, *user_ids: ObjectId) -> None:
    """Nothing is under way, nothing contradicts itself,
    and the provider has moved the money that Ximler counts."""
    problems = await verify(database)
    assert problems == [], problems
    await _movements_add_up(database, *user_ids)
    kept = 0
    for user_id in user_ids:
        account = await database[BILLING_ACCOUNTS].find_one({"_id": user_id})
        if account is None:
            continue
        assert (account.charge_id, account.checkout_id, account.refunds) == (None, None, [])
        charges = await database[CHARGES].find({"userId": user_id, "status": "PAID", "outside": None})
        refunds = await database[REFUNDS].find({"userId": user_id, "status": "SUCCEEDED", "to": {"$ne": "BALANCE"}})
        kept += sum(each.amount_minor for each in charges) - sum(each.amount_minor for each in refunds)
    assert await moved(database) == kept


async def _movements_add_up(database: Database, *user_ids: ObjectId) -> None:
    """The ledger's movements sum to what each user's account and subscriptions bring in now."""
    assert await drifts.check(database) == []
    for user_id, rows in (await movements.steps_of(database, user_ids)).items():
        account = await database[BILLING_ACCOUNTS].find_one({"_id": user_id})
        now = account and recurring(account, database.business)
        moved = Counter[str]()
        for day in rollups.days_of(rows):
            moved[day.currency] += day.end_minor - day.start_minor
        assert moved - Counter() == Counter({now.currency: now.annual_minor} if now else {}), (rows, now)


async def state(database: Database, user_id: ObjectId) -> dict[str, Any]:
    """Dates are given to the day: an act that is repeated after a crash is made some minutes later."""
    account = await database[BILLING_ACCOUNTS].find_one({"_id": user_id})
    entitled = await database.raw["entitlements"].find_one({"_id": user_id})
    invoices = await database[INVOICES].find({"userId": user_id, "year": {"$gt": 0}})
    return {
        "subscriptions": sorted(
            (
                each.status,
                each.plan_id,
                each.price_minor,
                each.auto_renew,
                str(each.pending_plan_id),
                *map(_day, (each.period_start, each.period_end, each.trial_end, each.end_date)),
            )
            for each in await database.subscriptions.find({"userId": user_id})
        ),
        "payments": sorted(
            (each.status, each.amount_minor) for each in await database.payments.find({"userId": user_id})
        ),
        "invoices": sorted((each.kind, each.status, _lines(each.lines), each.due_minor) for each in invoices),
        "balances": {currency: minor for currency, minor in account.balances.items() if minor} if account else {},
        "method": account and account.method and (account.method.label, account.method.declined),
        "limits": entitled and entitled["planId"],
        "coupons": {each.code: each.used_count for each in await database.coupons.find({"code": {"$gt": ""}})},
        "notices": sorted(title for title, _ in await notices(database, user_id)),
    }


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d}"


def _lines(lines: list[Any]) -> str:
    return "; ".join(f"{line['kind']} {line['amount_minor']}" for line in lines)
