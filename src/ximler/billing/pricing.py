"""The pricing engine: it computes every amount that Ximler charges,
so that a preview equals the charge. Pure.

Amounts are integers of minor units; intermediate results are exact fractions. Four rules make an invoice:

- Each line is rounded half up, once. Discounts are rounded, not discounted prices:
  15 % of 34.90 is 5.24, so 29.66 is due.
- Net is gross less discount; tax is computed on the sum of the net lines; the credit balance is used last.
- A sum is split by cumulative differences, so that the parts add up to the sum.
- An amount below the provider's minimum is not charged:
  it is carried over to the next invoice, as a negative balance.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Literal

import msgspec

from ximler.core.errors import Invalid
from ximler.core.money import Money

__all__ = [
    "NO_TAX",
    "Charge",
    "Discount",
    "Duration",
    "Line",
    "LineKind",
    "Quote",
    "Tax",
    "Unused",
    "between",
    "price",
    "share",
    "split",
]

LineKind = Literal["PLAN", "DISCOUNT", "PRORATION", "TAX", "CREDIT", "REFUND"]
Duration = Literal["ONCE", "REPEATING", "FOREVER"]

_WHOLE = 100


class Discount(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of a redeemed coupon: `percent` of a price, or `minor` units of `currency`.

    `renewals` is the number of periods left; None means every period. `plans` limits it to those plans; if
    empty, it applies to every plan. Raises Invalid for terms that would raise a price or lower it below zero.
    """

    code: str
    currency: str
    percent: Decimal | None = None
    minor: int | None = None
    renewals: int | None = None
    plans: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.minor is None):
            raise Invalid.field("value", "a discount is a percentage or an amount")
        if self.percent is not None and not (self.percent.is_finite() and 0 < self.percent <= _WHOLE):
            raise Invalid.field("value", f"{self.percent} % is not a discount: more than 0, and 100 at most")
        if self.minor is not None and self.minor <= 0:
            raise Invalid.field("value", f"{Money(self.minor, self.currency)} is not a discount: more than 0")
        if self.renewals is not None and self.renewals < 0:
            raise Invalid.field("renewals", f"{self.renewals} is not a number of renewals")

    def of(self, plan_id: str) -> "Discount | None":
        """The discount for periods of a plan; None if it does not apply to that plan."""
        return self if not self.plans or plan_id in self.plans else None

    @property
    def applies(self) -> bool:
        return self.renewals is None or self.renewals > 0

    def off(self, price_minor: int, currency: str) -> int:
        """The discount on a price: zero once it is used up, and at most the price.

        Raises Invalid if a fixed discount and the price are in different currencies.
        """
        if self.minor is not None and currency != self.currency:
            raise Invalid.field("currency", f"{self.code} takes off {self.currency}, and the price is in {currency}")
        if not self.applies:
            return 0
        if self.minor is not None:
            return min(self.minor, price_minor)
        return _half_up(price_minor * Fraction(self.percent or 0) / _WHOLE)

    def renewed(self, price_minor: int) -> "Discount | None":
        """The discount after a period at this price was billed: one renewal less, or None after the last.

        A free period (a trial) does not count.
        """
        if self.renewals is None or price_minor == 0:
            return self
        return msgspec.structs.replace(self, renewals=self.renewals - 1) if self.renewals > 1 else None


class Tax(msgspec.Struct, frozen=True, kw_only=True):
    """`percent` is added to prices, or contained in them (`inclusive`), by the rules of `country`.

    Under reverse charge no tax is charged, because the buyer owes it. An inclusive price stays the same.
    """

    percent: Decimal = Decimal(0)
    inclusive: bool = False
    reverse_charge: bool = False
    country: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= _WHOLE:
            raise Invalid.field("percent", f"{self.percent} % is not a rate of tax")

    def of(self, amount_minor: int) -> int:
        """The tax on (or, inclusive, within) an amount, which may be a credit."""
        if self.reverse_charge:
            return 0
        rate = Fraction(self.percent)
        part = rate / (_WHOLE + rate) if self.inclusive else rate / _WHOLE
        tax = _half_up(abs(amount_minor) * part)
        return tax if amount_minor >= 0 else -tax


NO_TAX = Tax()


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """A plan for a period, or for its last `remaining_s` of `whole_s` seconds."""

    plan_id: str
    description: str
    price_minor: int
    start: datetime
    end: datetime
    discount: Discount | None = None
    remaining_s: int = 1
    whole_s: int = 1

    def __post_init__(self) -> None:
        _check_part(self.price_minor, self.remaining_s, self.whole_s)


class Unused(msgspec.Struct, frozen=True, kw_only=True):
    """The unused rest of a period that was paid: its price after discount, and the seconds that are left."""

    plan_id: str
    description: str
    net_minor: int
    start: datetime
    end: datetime
    remaining_s: int
    whole_s: int

    def __post_init__(self) -> None:
        _check_part(self.net_minor, self.remaining_s, self.whole_s)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an invoice. An `included` line (tax in inclusive prices) is
    contained in the lines before it."""

    kind: LineKind
    description: str
    amount_minor: int
    plan_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    included: bool = False
    rate: str | None = None  # of tax, in percent
    country: str | None = None  # whose tax it is


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a future invoice.

    `total_minor` is the sum with tax, and negative if credits exceed charges; `due_minor` is charged;
    `balance_minor` is the credit balance afterwards, and negative if the amount was too small to charge. The
    lines that are not `included` add up to `due_minor`; `total = due + (balance before - balance after)`.
    """

    currency: str
    lines: tuple[Line, ...]
    discount_minor: int
    tax_minor: int
    total_minor: int
    due_minor: int
    balance_minor: int

    @property
    def net_minor(self) -> int:
        return self.total_minor - self.tax_minor


def price(
    currency: str,
    *,
    charges: Sequence[Charge] = (),
    unused: Sequence[Unused] = (),
    tax: Tax = NO_TAX,
    balance_minor: int = 0,
    minimum_minor: int = 0,
    step_minor: int = 1,
) -> Quote:
    """Price an invoice: charges less unused parts of earlier periods less the credit balance.

    The provider charges multiples of `step_minor`, `minimum_minor` at least; the rest stays in the balance.
    Raises Invalid if a discount is in another currency.
    """
    lines: list[Line] = [_unused_line(each) for each in unused]
    discount_minor = 0
    for charge in charges:
        made = _charge_lines(charge, currency)
        discount_minor -= sum(line.amount_minor for line in made if line.kind == "DISCOUNT")
        lines += made
    net = sum(line.amount_minor for line in lines)
    tax_minor = tax.of(net)
    if tax_minor or tax.reverse_charge:
        lines.append(_tax_line(tax, tax_minor))
    total = net if tax.inclusive else net + tax_minor
    owed = total - balance_minor
    due = owed - owed % step_minor if owed > 0 and owed >= minimum_minor else 0
    if due != total:
        lines.append(_balance_line(due - total, balance_minor))
    return Quote(
        currency=currency,
        lines=tuple(lines),
        discount_minor=discount_minor,
        tax_minor=tax_minor,
        total_minor=total,
        due_minor=due,
        balance_minor=due - owed,
    )


def share(amount_minor: int, part: int, whole: int) -> int:
    """`amount × part / whole`, rounded half up. For amounts that are not negative."""
    _check_part(amount_minor, part, whole)
    return _half_up(Fraction(amount_minor * part, whole))


def split(amount_minor: int, weights: Sequence[int]) -> list[int]:
    """Divide an amount in proportion to `weights`, by cumulative differences:
    the parts add up to the amount."""
    whole = sum(weights)
    if whole <= 0 or any(weight < 0 for weight in weights):
        raise ValueError("weights must not be negative, nor all zero")
    parts, upto = [], 0
    for weight in weights:
        parts.append(between(amount_minor, upto, upto + weight, whole))
        upto += weight
    return parts


def between(amount_minor: int, start: int, end: int, whole: int) -> int:
    """The share of an amount from `start` to `end` of `whole`:
    for example the tax in a refund, after earlier refunds.

    Consecutive shares add up exactly, however small each is.
    """
    return share(amount_minor, end, whole) - share(amount_minor, start, whole)


def _charge_lines(charge: Charge, currency: str) -> list[Line]:
    off = charge.discount.off(charge.price_minor, currency) if charge.discount else 0
    if charge.remaining_s < charge.whole_s:
        # Computed from the price after discount:
        # a later credit for this line is then rounded in the same way.
        amount = share(charge.price_minor - off, charge.remaining_s, charge.whole_s)
        return [_line("PRORATION", charge, charge.description, amount)]
    lines = [_line("PLAN", charge, charge.description, charge.price_minor)]
    if charge.discount is not None and off:
        lines.append(_line("DISCOUNT", charge, charge.discount.code, -off))
    return lines


def _unused_line(unused: Unused) -> Line:
    credit = share(unused.net_minor, unused.remaining_s, unused.whole_s)
    return _line("PRORATION", unused, unused.description, -credit)


def _line(kind: LineKind, of: Charge | Unused, description: str, amount_minor: int) -> Line:
    return Line(
        kind=kind,
        description=description,
        amount_minor=amount_minor,
        plan_id=of.plan_id,
        start=of.start,
        end=of.end,
    )


def _tax_line(tax: Tax, tax_minor: int) -> Line:
    if tax.reverse_charge:
        return Line(
            kind="TAX",
            description="Reverse charge: VAT to be accounted for by the recipient",
            amount_minor=0,
            rate="0",
            country=tax.country,
        )
    rate = f"{tax.percent.normalize():f}"
    return Line(
        kind="TAX",
        description=f"Tax {rate} %",
        amount_minor=tax_minor,
        included=tax.inclusive,
        rate=rate,
        country=tax.country,
    )


def _balance_line(amount_minor: int, balance_minor: int) -> Line:
    if amount_minor > 0:
        description = "Carried over from an earlier invoice" if balance_minor < 0 else "To the credit balance"
    else:
        description = "From the credit balance" if balance_minor > 0 else "Carried over to the next invoice"
    return Line(kind="CREDIT", description=description, amount_minor=amount_minor)


def _check_part(amount_minor: int, part: int, whole: int) -> None:
    if amount_minor < 0:
        raise Invalid.field("amount", f"{amount_minor} is negative")
    if not 0 <= part <= whole or whole == 0:
        raise ValueError(f"{part} of {whole} is no part of it")


def _half_up(amount: Fraction) -> int:
    """Of an amount that is not negative."""
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)
