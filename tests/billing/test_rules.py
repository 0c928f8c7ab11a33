"""The rules of docs/billing.md, with more values than the examples there, all worked out by hand."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from bson import ObjectId
from tests.billing.conftest import OPERATOR, SOFT, Buy, add_plan, at, card_of, paid, subscription
from tests.billing.test_changes_with_coupons import coupon

from ximler.billing import payments, refunds, run, statement
from ximler.billing.account import RETRIES, retry_at
from ximler.billing.periods import period
from ximler.billing.pricing import Charge, Discount, Tax, Unused, between, price
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import Actor
from ximler.core.business import Business
from ximler.core.money import Money
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount
from ximler.schema.charge import CHARGES
from ximler.schema.plan import Interval

NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("anchor", "interval", "begins"),
    [
        ("2027-12-31", "MONTH", "2027-12-31 2028-01-31 2028-02-29 2028-03-31 2028-04-30 2028-05-31"),
        ("2024-08-31", "MONTH", "2024-08-31 2024-09-30 2024-10-31 2024-11-30 2024-12-31 2025-01-31 2025-02-28"),
        ("2027-01-30", "MONTH", "2027-01-30 2027-02-28 2027-03-30 2027-04-30"),
        ("2028-01-29", "MONTH", "2028-01-29 2028-02-29 2028-03-29"),
        ("2027-01-29", "MONTH", "2027-01-29 2027-02-28 2027-03-29 2027-04-29"),
        ("2024-02-29", "MONTH", "2024-02-29 2024-03-29 2024-04-29"),
        ("2096-02-29", "YEAR", "2096-02-29 2097-02-28 2098-02-28 2099-02-28 2100-02-28 2101-02-28"),  # 2100 has none
        ("2023-02-28", "YEAR", "2023-02-28 2024-02-28 2025-02-28"),
        ("2024-12-31", "YEAR", "2024-12-31 2025-12-31 2026-12-31"),
    ],
)
def test_periods_begin_on_the_anchors_day_or_the_last_of_the_month(
    anchor: str, interval: Interval, begins: str
) -> None:
    first = datetime.fromisoformat(anchor).replace(tzinfo=UTC)
    expected = begins.split()
    assert [f"{period(first, interval, index).start:%Y-%m-%d}" for index in range(len(expected))] == expected


@pytest.mark.parametrize(
    ("currency", "old", "new", "left", "whole", "lines", "due", "balance"),
    [
        ("USD", 2900, 9900, 10, 30, (-967, 3300), 2333, 0),
        ("USD", 2900, 5800, 10, 29, (-1000, 2000), 1000, 0),  # February of a leap year
        ("USD", 1, 2, 1, 2, (-1, 1), 0, 0),  # each line is rounded once
        ("USD", 999, 1999, 1, 2_678_400, (0, 0), 0, 0),  # the last second of a month
        ("USD", 9900, 2900, 1, 2, (-4950, 1450), 0, 3500),
        ("USD", 10**12, 2 * 10**12, 1, 3, (-333333333333, 666666666667), 333333333334, 0),
        ("JPY", 1500, 3000, 7, 31, (-339, 677), 338, 0),
        ("JPY", 100, 150, 1, 2, (-50, 75), 0, -25),  # less than the minimum: on the next invoice
        ("KWD", 5005, 12345, 7, 29, (-1208, 2980), 1770, -2),  # charged in multiples of ten
        ("KWD", 1000, 2001, 1, 2, (-500, 1001), 500, -1),
    ],
)
def test_a_change_charges_the_rest_of_the_new_price_and_credits_that_of_the_old(
    currency: str, old: int, new: int, left: int, whole: int, lines: tuple[int, int], due: int, balance: int
) -> None:
    end = NOON + timedelta(days=1)
    unused = Unused(
        plan_id="old", description="old", net_minor=old, start=NOON, end=end, remaining_s=left, whole_s=whole
    )
    charge = Charge(
        plan_id="new", description="new", price_minor=new, start=NOON, end=end, remaining_s=left, whole_s=whole
    )
    minimum, step = {"USD": (50, 1), "JPY": (50, 1), "KWD": (500, 10)}[currency]
    quote = price(currency, charges=[charge], unused=[unused], minimum_minor=minimum, step_minor=step)
    assert tuple(each.amount_minor for each in quote.lines[:2]) == lines
    assert (quote.due_minor, quote.balance_minor) == (due, balance)


@pytest.mark.parametrize(
    ("currency", "gross", "percent", "off"),
    [
        ("USD", 3490, "15", 524),
        ("USD", 999, "50", 500),
        ("USD", 1, "50", 1),
        ("USD", 100, "0.5", 1),
        ("USD", 3, "33.33", 1),
        ("USD", 10**12 + 1, "50", 500000000001),
        ("JPY", 1990, "15", 299),
        ("KWD", 1001, "12.5", 125),
        ("KWD", 34985, "10", 3499),
    ],
)
def test_the_discount_is_rounded_half_up(currency: str, gross: int, percent: str, off: int) -> None:
    assert Discount(code="A", currency=currency, percent=Decimal(percent)).off(gross, currency) == off


@pytest.mark.parametrize(
    ("percent", "inclusive", "amount", "tax"),
    [
        ("19", False, 2320, 441),
        ("7.7", False, 1000, 77),
        ("5.5", False, 10, 1),
        ("8", False, 101, 8),
        ("19", False, -1000, -190),
        ("20", True, 10000, 1667),
        ("7.7", True, 2900, 207),
        ("10", True, 1100, 100),
        ("19", True, 1, 0),
        ("100", True, 3, 2),
        ("19", True, -1190, -190),
    ],
)
def test_tax_is_added_or_contained(percent: str, inclusive: bool, amount: int, tax: int) -> None:
    assert Tax(percent=Decimal(percent), inclusive=inclusive).of(amount) == tax


@pytest.mark.parametrize(
    ("tax", "captured", "parts", "taxes"),
    [
        (441, 2761, [1000, 1000, 761], [160, 159, 122]),
        (1, 3, [1, 1, 1], [0, 1, 0]),
        (900, 9900, [4950, 4950], [450, 450]),
        (10, 110, [110], [10]),
        (7, 100, [33, 33, 34], [2, 3, 2]),
    ],
)
def test_refunds_of_a_payment_contain_exactly_its_tax(
    tax: int, captured: int, parts: list[int], taxes: list[int]
) -> None:
    found, before = [], 0
    for part in parts:
        found.append(between(tax, before, before + part, captured))
        before += part
    assert found == taxes


@pytest.mark.parametrize(
    ("failed", "retries"),
    [
        ("2027-03-10T12:00:00", "03-11 03-13 03-15 03-17"),
        ("2028-02-28T23:59:59", "02-29 03-02 03-04 03-06"),
        ("2027-02-28T00:00:01", "03-01 03-03 03-05 03-07"),
        ("2027-12-30T06:00:00", "12-31 01-02 01-04 01-06"),
        ("2027-01-31T12:00:00", "02-01 02-03 02-05 02-07"),
    ],
)
def test_retries_are_1_3_5_and_7_days_after_the_first_failure(failed: str, retries: str) -> None:
    first = datetime.fromisoformat(failed).replace(tzinfo=UTC)
    account = BillingAccount(id=ObjectId(), failed_at=first)
    found = []
    for account.retries in range(len(RETRIES)):
        moment = retry_at(account)
        assert moment is not None
        assert moment.time() == first.time()
        found.append(f"{moment:%m-%d}")
    assert " ".join(found) == retries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bought", "days"),
    [((2028, 1, 29), "02-29 03-01 03-03 03-05 03-07"), ((2027, 1, 31), "02-28 03-01 03-03 03-05 03-07")],
)
async def test_a_renewal_that_fails_is_tried_five_times_in_all_and_expires(
    bought: tuple[int, int, int], days: str, database: Database, rail: Sandbox, ada: Actor, buy: Buy
) -> None:
    begun = at(database, *bought)
    await buy(ada)
    await card_of(database, ada, SOFT)
    await run.forward(database, rail, begun + timedelta(days=45))
    tried = await database[CHARGES].find({"userId": ada.user_id, "status": "FAILED"}, sort=[("createdAt", 1)])
    assert " ".join(f"{each.created_at:%m-%d}" for each in tried) == days
    assert (await subscription(database, ada)).status == "EXPIRED"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("currency", "gross", "off", "tax", "inclusive", "credit", "captured"),
    [
        ("USD", 10000, 1000, 10, False, 500, 9400),
        ("USD", 10000, 1000, 10, True, 500, 8500),
        ("USD", 10000, 0, "7.7", False, 0, 10770),
        ("JPY", 3000, 300, 10, False, 70, 2900),
        ("KWD", 12340, 1000, 5, False, 17, 11890),  # 11.907 less 0.017
    ],
)
async def test_at_most_the_captured_amount_is_refunded(
    currency: str, gross: int, off: int, tax: str, inclusive: bool, credit: int, captured: int,
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rates = {"DE": Decimal(tax)}
    monkeypatch.setattr(database, "business", Business(country="DE", rates=rates, inclusive=inclusive))
    await add_plan(database, "plan", Money(gross, currency).major, currency=currency)
    if off:
        await coupon(database, "OFF", Money(off, currency).major, type="FIXED", currency=currency)
    user_id = ada.require_user()
    if credit:
        amount = Money(credit, currency)
        await statement.grant(database, OPERATOR, user_id=user_id, amount=amount, reason="-", key="k")
    await buy(ada, "plan", coupon="OFF" if off else None)
    assert await paid(database, ada) == [captured]
    (payment,) = (await payments.page(database, ada)).items
    asked = {"user_id": user_id, "payment_id": payment.id, "reason": "-"}
    with pytest.raises(refunds.RefundTooHigh):
        await refunds.refund(database, rail, OPERATOR, amount_minor=captured + 1, **asked)
    for part in (1, captured - 1):
        assert (await refunds.refund(database, rail, OPERATOR, amount_minor=part, **asked)).status == "SUCCEEDED"
    with pytest.raises(refunds.RefundTooHigh):
        await refunds.refund(database, rail, OPERATOR, amount_minor=1, **asked)
