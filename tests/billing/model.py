"""What each invoice has to say, computed from the rules of docs/billing.md alone,
with fractions and nothing of Ximler's.

`Model.see` is given the invoices of a user in the order in which they were made, and raises AssertionError
for an amount, a period or a balance that the rules do not give. It follows the terms from one invoice to the
next; which invoices there are, and whether they were paid, is not its question.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

__all__ = ["Coupon", "Model", "Plan"]


@dataclass(frozen=True)
class Plan:
    id: str
    minor: int
    months: int = 1
    trial_days: int = 0


@dataclass(frozen=True)
class Coupon:
    """`left`: how many more periods it applies to; None is every one."""

    percent: Fraction | None = None
    minor: int = 0
    left: int | None = 1
    plans: tuple[str, ...] = ()

    def off(self, plan: Plan) -> int:
        if self.plans and plan.id not in self.plans:
            return 0
        if self.percent is None:
            return min(self.minor, plan.minor)
        return rounded(plan.minor * self.percent / 100)

    def after(self, plan: Plan) -> "Coupon | None":
        """A period of the plan was billed."""
        if self.plans and plan.id not in self.plans:
            return None
        if self.left is None:
            return self
        return replace(self, left=self.left - 1) if self.left > 1 else None


@dataclass
class State:
    """Of a subscription, from when it was paid for. `index` counts periods from `anchor`;
    -1 is a trial that ends there."""

    plan: Plan
    net: int
    coupon: Coupon | None
    anchor: datetime
    index: int
    until: datetime | None = None  # an operator extended the period

    @property
    def start(self) -> datetime:
        return moved(self.anchor, self.plan.months * max(self.index, 0))

    @property
    def end(self) -> datetime:
        return self.until or moved(self.anchor, self.plan.months * (max(self.index, 0) + 1))


@dataclass
class Model:
    """`tax`: percent, contained in the prices if `inclusive`.
    Amounts due are multiples of `step`, `minimum` or more."""

    tax: Fraction = Fraction(0)
    inclusive: bool = False
    minimum: int = 50
    step: int = 1
    state: State | None = None
    pending: Plan | None = None
    new_price: int | None = None
    asked: dict[str, tuple[Plan, Coupon | None, datetime]] = field(default_factory=dict)  # by checkout
    drafts: dict[Any, State] = field(default_factory=dict)  # by invoice: what holds when it is paid
    seen: set[Any] = field(default_factory=set)
    balance: int = 0
    entries: set[str] = field(default_factory=set)

    def see(self, invoices: list[Any], entries: list[Any], plans: dict[str, Plan]) -> None:
        """All invoices of the user, and all entries of their balance, as they were inserted;
        plans as they are on offer."""
        fresh = [entry for entry in entries if entry.id not in self.entries]
        self.entries |= {entry.id for entry in fresh}
        for invoice in invoices:
            if invoice.id in self.seen:
                if invoice.id in self.drafts and invoice.status != "DRAFT":
                    self._decided(invoice)
                continue
            self.seen.add(invoice.id)
            own = next((n for n, entry in enumerate(fresh) if entry.id == f"invoice:{invoice.id}"), None)
            if own is not None:
                self.balance += sum(entry.amount_minor for entry in fresh[:own])
                del fresh[:own]
            if invoice.kind == "CREDIT_NOTE":
                assert (
                    sum(line["amount_minor"] for line in invoice.lines if not line.get("included")) == invoice.due_minor
                )
            else:
                self._check(invoice, plans)
            if own is not None:
                self.balance += fresh.pop(0).amount_minor
            if invoice.kind in ("CHECKOUT", "CHANGE") and invoice.status != "DRAFT":
                self._decided(invoice)
        self.balance += sum(entry.amount_minor for entry in fresh)

    def try_out(self, checkout_id: str) -> None:
        """A trial begins, which has no invoice."""
        plan, coupon, at = self.asked[checkout_id]
        self.state, self.pending, self.new_price = (
            State(plan, 0, coupon, at + timedelta(days=plan.trial_days), -1),
            None,
            None,
        )

    def apply(self, coupon: Coupon) -> None:
        """From the next invoice on, also where a change of plan is being paid."""
        for each in (self.state, *self.drafts.values()):
            if each is not None:
                each.coupon = coupon

    def extend(self, until: datetime) -> None:
        if self.state is None:  # not followed
            return
        if self.state.index < 0:
            self.state.anchor = until
        else:
            self.state.until = until

    def reprice(self, minor: int) -> None:
        if self.state is None:
            return
        present = self.state.plan.minor if self.new_price is None else self.new_price
        self.new_price = self.new_price if minor == present else minor

    def _check(self, invoice: Any, plans: dict[str, Plan]) -> None:
        made = {"CHECKOUT": self._bought, "RENEWAL": self._renewed, "CHANGE": self._changed}[invoice.kind]
        lines, after = made(invoice, plans)
        net = sum(lines)
        tax = self._tax(net)
        total = net if self.inclusive else net + tax
        owed = total - self.balance
        free = invoice.kind == "CHANGE" and after.index < 0  # on trial nothing is asked for, what is owed neither
        due = owed - owed % self.step if owed >= self.minimum and not free else 0
        assert [line["amount_minor"] for line in invoice.lines if line["kind"] not in ("TAX", "CREDIT")] == lines
        assert (invoice.tax_minor, invoice.total_minor, invoice.due_minor) == (tax, total, due)
        assert (invoice.balance_before_minor, invoice.balance_after_minor) == (self.balance, due - owed)
        assert (invoice.period_start, invoice.period_end) == (after.start, after.end)
        if invoice.kind == "RENEWAL":
            self.state, self.pending, self.new_price = after, None, None
        else:
            self.drafts[invoice.id] = after

    def _decided(self, invoice: Any) -> None:
        """A purchase or a change was paid, or declined."""
        after = self.drafts.pop(invoice.id)
        if invoice.status == "PAID":
            self.state, self.new_price, self.pending = after, None, None

    def _tax(self, net: int) -> int:
        part = self.tax / (100 + self.tax) if self.inclusive else self.tax / 100
        return rounded(abs(net) * part) * (1 if net >= 0 else -1)

    def _bought(self, invoice: Any, plans: dict[str, Plan]) -> tuple[list[int], State]:
        plan, coupon, at = self.asked[invoice.checkout_id]
        lines, after = whole(plan, coupon)
        assert at <= invoice.period_start <= at + timedelta(hours=1)
        return lines, State(plan, sum(lines), after, invoice.period_start, 0)

    def _renewed(self, invoice: Any, plans: dict[str, Plan]) -> tuple[list[int], State]:
        before = self.state
        assert before is not None
        plan = self.pending or (before.plan if self.new_price is None else replace(before.plan, minor=self.new_price))
        anchor, index = before.anchor, before.index + 1
        if before.until is not None and before.index >= 0:
            anchor, index = before.until, 0
        elif plan.months != before.plan.months:
            anchor, index = (before.anchor if before.index < 0 else before.end), 0
        lines, coupon = whole(plan, before.coupon)
        return lines, State(plan, sum(lines), coupon, anchor, index)

    def _changed(self, invoice: Any, plans: dict[str, Plan]) -> tuple[list[int], State]:
        before, plan = self.state, plans[invoice.plan_id]
        assert before is not None
        coupon = before.coupon
        net = plan.minor - (coupon.off(plan) if coupon else 0)
        if before.index < 0:  # on trial: free, and it ends when it was to end
            return [], State(plan, 0, coupon, before.anchor, -1)
        now = next(line["start"].replace(tzinfo=UTC) for line in invoice.lines if line.get("start"))
        length = seconds(before.end - before.start)
        credit = -rounded(Fraction(before.net * seconds(before.end - now), length))
        if plan.months == before.plan.months:
            charge = rounded(Fraction(net * seconds(before.end - now), length))
            if now == before.start:
                return [credit, *whole(plan, coupon)[0]], replace(before, plan=plan, net=net)
            return [credit, charge], replace(before, plan=plan, net=net)
        lines, left = whole(plan, coupon)
        return [credit, *lines], State(plan, sum(lines), left, now, 0)


def whole(plan: Plan, coupon: Coupon | None) -> tuple[list[int], Coupon | None]:
    """The lines of a whole period, and what is left of the coupon."""
    off = coupon.off(plan) if coupon else 0
    return [plan.minor, -off] if off else [plan.minor], coupon.after(plan) if coupon else None


def rounded(amount: Fraction) -> int:
    """Half up."""
    return int(amount + Fraction(1, 2))


def moved(anchor: datetime, months: int) -> datetime:
    """The same day of a later month, or its last day: the day before the first of the month after."""
    first = anchor.replace(day=1)
    for _ in range(months):
        first = (first + timedelta(days=31)).replace(day=1)
    last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return first.replace(day=min(anchor.day, last.day))


def seconds(length: timedelta) -> int:
    return length // timedelta(seconds=1)
