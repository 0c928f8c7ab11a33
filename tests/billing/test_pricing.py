"""The worked examples are those of docs/billing.md. Amounts are minor units: 2999 is 29.99."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.billing.periods import period
from ximler.billing.pricing import NO_TAX, Charge, Discount, Quote, Tax, Unused, between, price, share, split
from ximler.core.errors import Invalid
from ximler.core.money import Money, exponent

START = datetime(2026, 3, 1, tzinfo=UTC)
END = datetime(2026, 4, 1, tzinfo=UTC)
LARGEST = 10**12


def charge(
    price_minor: int, *, discount: Discount | None = None, remaining_s: int = 1, whole_s: int = 1, plan: str = "pro"
) -> Charge:
    return Charge(
        plan_id=plan,
        description=plan,
        price_minor=price_minor,
        start=START,
        end=END,
        discount=discount,
        remaining_s=remaining_s,
        whole_s=whole_s,
    )


def unused(net_minor: int, remaining_s: int, whole_s: int) -> Unused:
    return Unused(
        plan_id="basic",
        description="basic",
        net_minor=net_minor,
        start=START,
        end=END,
        remaining_s=remaining_s,
        whole_s=whole_s,
    )


def percent(value: int | str, *, renewals: int | None = 1) -> Discount:
    return Discount(code="SAVE", currency="USD", percent=Decimal(value), renewals=renewals)


def fixed(minor: int, currency: str = "USD", *, renewals: int | None = 1) -> Discount:
    return Discount(code="SAVE", currency=currency, minor=minor, renewals=renewals)


def change(old_net: int, new: Charge, *, minimum: int = 0) -> Quote:
    """An upgrade: the rest of the old plan against the same rest of the new one."""
    return price("USD", charges=[new], unused=[unused(old_net, new.remaining_s, new.whole_s)], minimum_minor=minimum)


# Discounts


@pytest.mark.parametrize(
    ("gross", "discount", "off", "due"),
    [
        (3490, percent(15), 524, 2966),
        (1995, percent(50), 998, 997),
        (2900, percent(20), 580, 2320),
        (2900, percent("12.5"), 363, 2537),
        (2900, percent(100), 2900, 0),
        (2900, fixed(1000), 1000, 1900),
        (2900, fixed(5000), 2900, 0),
        (1, percent(50), 1, 0),
    ],
)
def test_the_discount_is_rounded_half_up_and_the_price_is_what_is_left(
    gross: int, discount: Discount, off: int, due: int
) -> None:
    quote = price("USD", charges=[charge(gross, discount=discount)])
    assert (quote.discount_minor, quote.due_minor) == (off, due)


def test_a_fixed_discount_in_another_currency_is_refused() -> None:
    with pytest.raises(Invalid, match="EUR"):
        price("USD", charges=[charge(2900, discount=fixed(500, "EUR"))])


@pytest.mark.parametrize(
    "terms",
    [
        {"percent": Decimal(-50)},
        {"percent": Decimal(0)},
        {"percent": Decimal(200)},
        {"minor": -1},
        {"minor": 0},
        {},
        {"percent": Decimal(5), "minor": 5},
        {"minor": 5, "renewals": -1},
    ],
)
def test_terms_that_are_no_discount_are_refused(terms: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        Discount(code="SAVE", currency="USD", **terms)  # type: ignore[arg-type]  # that is the point


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(Invalid):
        charge(-1)


def test_a_discount_lasts_for_the_renewals_that_cost_something() -> None:
    three = percent(10, renewals=3)
    assert three.renewed(0) == three
    second = three.renewed(2900)
    assert second is not None
    assert second.renewals == 2
    assert percent(10, renewals=1).renewed(2900) is None
    for_ever = percent(10, renewals=None)
    assert for_ever.renewed(2900) == for_ever


def test_a_discount_that_is_used_up_takes_nothing_off() -> None:
    assert percent(50, renewals=0).off(2900, "USD") == 0


# Changes of plan

HALF = {"remaining_s": 1, "whole_s": 2}
DAYS_21 = {"remaining_s": 21 * 86_400, "whole_s": 31 * 86_400}


def test_a_discount_for_ever_lowers_both_sides_of_an_upgrade() -> None:
    for_ever = fixed(1000, renewals=None)
    quote = change(5000 - 1000, charge(10_000, discount=for_ever, **HALF))
    assert [line.amount_minor for line in quote.lines] == [-2000, 4500]
    assert quote.due_minor == 2500


def test_a_discount_that_was_used_up_lowers_only_the_credit() -> None:
    quote = change(1000, charge(5000, **HALF))
    assert [line.amount_minor for line in quote.lines] == [-500, 2500]
    assert quote.due_minor == 2000


def test_the_subscriptions_own_price_counts_and_not_the_list_price() -> None:
    assert change(1000, charge(3000, **HALF)).due_minor == 1000


def test_each_line_is_rounded_once_and_then_summed() -> None:
    quote = change(1000, charge(2999, **DAYS_21))
    assert [line.amount_minor for line in quote.lines] == [-677, 2032]
    assert quote.due_minor == 1355


def test_an_amount_below_the_minimum_goes_on_the_next_invoice() -> None:
    rest = {"remaining_s": 12 * 3600, "whole_s": 30 * 86_400}
    quote = change(900, charge(1900, **rest), minimum=50)
    assert (quote.total_minor, quote.due_minor, quote.balance_minor) == (17, 0, -17)
    following = price("USD", charges=[charge(1900)], balance_minor=quote.balance_minor, minimum_minor=50)
    assert (following.due_minor, following.balance_minor) == (1917, 0)
    assert following.lines[-1].description == "Carried over from an earlier invoice"


def test_a_year_that_becomes_months_is_paid_back_by_months_that_cost_nothing() -> None:
    year = period(datetime(2026, 1, 1, tzinfo=UTC), "YEAR", 0)
    april = datetime(2026, 4, 1, tzinfo=UTC)
    credit = unused(12_000, year.remaining_s(april), year.seconds)
    quote = price("USD", charges=[charge(1000)], unused=[credit])
    assert quote.lines[0].amount_minor == -9041
    assert quote.due_minor == 0
    balance, due = quote.balance_minor, []
    for _ in range(9):
        month = price("USD", charges=[charge(1000)], balance_minor=balance)
        balance = month.balance_minor
        due.append(month.due_minor)
    assert due == [0] * 8 + [959]


def test_a_cheaper_plan_in_the_middle_of_a_period_leaves_a_credit() -> None:
    quote = change(10_000, charge(5000, **HALF))
    assert (quote.due_minor, quote.total_minor, quote.balance_minor) == (0, -2500, 2500)


# Tax and balance


def test_tax_comes_after_the_discount_and_the_balance_after_the_tax() -> None:
    quote = price(
        "USD", charges=[charge(10_000, discount=fixed(1000))], tax=Tax(percent=Decimal(10)), balance_minor=500
    )
    assert [(line.kind, line.amount_minor) for line in quote.lines] == [
        ("PLAN", 10_000), ("DISCOUNT", -1000), ("TAX", 900), ("CREDIT", -500),
    ]  # fmt: skip
    assert (quote.net_minor, quote.tax_minor, quote.total_minor, quote.due_minor) == (9000, 900, 9900, 9400)


def test_inclusive_tax_is_contained_in_the_price() -> None:
    quote = price("EUR", charges=[charge(11_900)], tax=Tax(percent=Decimal(19), inclusive=True))
    assert (quote.net_minor, quote.tax_minor, quote.due_minor) == (10_000, 1900, 11_900)
    assert quote.lines[-1].included


def test_reverse_charge_asks_for_no_tax_and_says_so() -> None:
    quote = price("EUR", charges=[charge(10_000)], tax=Tax(percent=Decimal(19), reverse_charge=True))
    assert (quote.tax_minor, quote.due_minor) == (0, 10_000)
    assert "Reverse charge" in quote.lines[-1].description


def test_the_tax_of_what_is_unused_is_credited_as_well() -> None:
    tax = Tax(percent=Decimal(20))
    quote = price("EUR", charges=[charge(5000, **HALF)], unused=[unused(10_000, 1, 2)], tax=tax)
    assert (quote.tax_minor, quote.total_minor, quote.balance_minor) == (-500, -3000, 3000)


def test_refunds_of_any_size_return_all_of_the_tax_and_no_more() -> None:
    parts = [between(900, done, done + 94, 9400) for done in range(0, 9400, 94)]
    assert sum(parts) == 900
    assert set(parts) <= {9}
    assert sum(between(7, done, done + 1, 9400) for done in range(9400)) == 7


def test_currencies_without_decimals_and_with_three_are_counted_in_their_own_units() -> None:
    yen = price("JPY", charges=[charge(2980, discount=percent(15))], tax=Tax(percent=Decimal(10)))
    assert (yen.discount_minor, yen.due_minor) == (447, 2786)
    dinar = price("KWD", charges=[charge(9500, discount=percent(15))])
    assert str(Money(dinar.due_minor, "KWD")) == "8.075 KWD"
    assert (exponent("JPY"), exponent("KWD")) == (0, 3)


# Whatever is priced

amounts = st.integers(0, LARGEST)
currencies = st.sampled_from(["USD", "JPY", "KWD"])
wholes = st.integers(1, 366 * 86_400)


@st.composite
def discounts(draw: st.DrawFn, currency: str) -> Discount:
    renewals = draw(st.none() | st.integers(0, 24))
    if draw(st.booleans()):
        value = draw(st.decimals("0.01", "100", places=2))
        return Discount(code="SAVE", currency=currency, percent=value, renewals=renewals)
    return Discount(code="SAVE", currency=currency, minor=draw(st.integers(1, LARGEST)), renewals=renewals)


@st.composite
def invoices(draw: st.DrawFn) -> tuple[Quote, int, int, list[Charge], list[Unused]]:
    currency = draw(currencies)
    whole = draw(wholes)
    remaining = draw(st.integers(0, whole))
    charges = [
        charge(draw(amounts), discount=draw(st.none() | discounts(currency)), remaining_s=part, whole_s=whole)
        for part in draw(st.lists(st.sampled_from([remaining, whole]), min_size=1, max_size=3))
    ]
    unspent = [unused(draw(amounts), remaining, whole)] * draw(st.integers(0, 1))
    tax = Tax(percent=draw(st.decimals(0, 30, places=2)), inclusive=draw(st.booleans()))
    balance = draw(st.integers(-1000, LARGEST))
    minimum = draw(st.integers(0, 100))
    quote = price(currency, charges=charges, unused=unspent, tax=tax, balance_minor=balance, minimum_minor=minimum)
    return quote, balance, minimum, charges, unspent


@pytest.mark.slow
@given(invoices())
def test_nothing_below_zero_is_asked_for_and_no_unit_is_lost(
    made: tuple[Quote, int, int, list[Charge], list[Unused]],
) -> None:
    quote, balance, minimum, charges, unspent = made
    assert quote.due_minor >= 0
    assert quote.due_minor == 0 or quote.due_minor >= minimum
    assert quote.total_minor == quote.due_minor + balance - quote.balance_minor
    assert sum(line.amount_minor for line in quote.lines if not line.included) == quote.due_minor
    assert quote.net_minor + quote.tax_minor == quote.total_minor
    if not unspent:
        assert 0 <= quote.total_minor <= 2 * sum(each.price_minor for each in charges)


@given(amounts, wholes, st.data())
def test_a_share_is_the_exact_one_rounded_half_up(amount: int, whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, whole))
    exact = Fraction(amount * part, whole)
    assert Fraction(-1, 2) <= exact - share(amount, part, whole) < Fraction(1, 2)


@given(amounts, st.lists(st.integers(0, 10**6), min_size=1, max_size=20).filter(any))
def test_parts_add_up_and_none_is_off_by_a_unit(amount: int, weights: list[int]) -> None:
    parts = split(amount, weights)
    assert sum(parts) == amount
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(amount * weight, sum(weights))) < 1


@given(st.integers(1, 10**9), st.integers(1, 10**9), wholes, st.data())
def test_an_upgrade_and_the_way_back_at_the_same_instant_cost_nothing(
    old: int, new: int, whole: int, data: st.DataObject
) -> None:
    part = {"remaining_s": data.draw(st.integers(0, whole)), "whole_s": whole}
    there = change(old, charge(new, **part))
    back = change(new, charge(old, **part))
    assert there.total_minor + back.total_minor == 0


@given(currencies, amounts, st.data())
def test_inclusive_tax_and_net_make_the_price(currency: str, amount: int, data: st.DataObject) -> None:
    tax = Tax(percent=data.draw(st.decimals(0, 30, places=2)), inclusive=True)
    quote = price(currency, charges=[charge(amount)], tax=tax)
    assert quote.due_minor == amount
    assert 0 <= quote.tax_minor <= amount
    assert price(currency, charges=[charge(amount)], tax=NO_TAX).due_minor == amount


def test_a_part_that_is_none_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no part"):
        share(100, 3, 2)
    with pytest.raises(ValueError, match="weights"):
        split(100, [])


def test_periods_of_a_year_divide_a_yearly_price_exactly() -> None:
    anchor = datetime(2024, 1, 31, tzinfo=UTC)
    months = [period(anchor, "MONTH", index) for index in range(12)]
    assert months[-1].end == anchor + timedelta(days=366)
    assert sum(split(9999, [month.seconds for month in months])) == 9999
