"""Amounts as Stripe writes them, where it differs from ISO 4217."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.billing.pricing import Charge, price
from ximler.billing.stripe_currencies import from_stripe, minimum, step, to_stripe
from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid

AMOUNTS = [
    ("USD", 2999, 2999),
    ("JPY", 2980, 2980),
    ("KRW", 10**12, 10**12),
    ("ISK", 5, 500),  # zero-decimal, and sent with two
    ("UGX", 7, 700),
    ("MGA", 500, 5),  # two decimals in ISO 4217, none at Stripe
    ("KWD", 5120, 5120),  # its last digit is 0
    ("HUF", 1045, 1045),
    ("TWD", 80045, 80045),
]


@pytest.mark.parametrize(("currency", "ours", "stripes"), AMOUNTS)
def test_amounts_are_written_as_stripe_wants_them_and_read_back(currency: str, ours: int, stripes: int) -> None:
    assert (to_stripe(ours, currency), from_stripe(stripes, currency)) == (stripes, ours)


def test_amounts_that_one_of_the_two_cannot_express_are_refused() -> None:
    for currency, minor in (("KWD", 5124), ("BHD", 1), ("MGA", 250)):
        with pytest.raises(Invalid, match="multiples of"):
            to_stripe(minor, currency)
    with pytest.raises(Invalid, match="no whole amount of ISK"):
        from_stripe(550, "ISK")


@given(st.sampled_from(["USD", "JPY", "ISK", "UGX", "MGA", "KWD", "TND", "HUF"]), st.integers(0, 10**12))
def test_what_is_due_can_be_expressed_and_the_rest_stays_in_the_balance(currency: str, amount: int) -> None:
    charge = Charge(plan_id="p", description="P", price_minor=amount, start=EPOCH, end=EPOCH)
    quote = price(currency, charges=[charge], minimum_minor=minimum(currency), step_minor=step(currency))
    assert quote.due_minor - quote.balance_minor == amount
    assert from_stripe(to_stripe(quote.due_minor, currency), currency) == quote.due_minor
    assert quote.due_minor == 0 or quote.due_minor >= minimum(currency)


def test_less_than_stripe_charges_at_once_is_not_due() -> None:
    for currency, amount, due in (("GBP", 29, 0), ("GBP", 30, 30), ("KWD", 5124, 5120), ("MXN", 999, 0)):
        charge = Charge(plan_id="p", description="P", price_minor=amount, start=EPOCH, end=EPOCH)
        assert (
            price(currency, charges=[charge], minimum_minor=minimum(currency), step_minor=step(currency)).due_minor
            == due
        )
