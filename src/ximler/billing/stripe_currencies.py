"""The currencies in which Stripe's amounts differ from ISO 4217, and the least that it charges at once. Pure.

Source: docs.stripe.com/currencies ("Zero-decimal", "Special cases", "Minimum and maximum charge amounts").
"""

from ximler.core.errors import Invalid
from ximler.core.money import exponent

__all__ = ["from_stripe", "minimum", "step", "to_stripe"]

# Stripe's decimal places, and the last of them that may be other than zero.
_PLACES = {"ISK": 2, "UGX": 2, "MGA": 0}
_SIGNIFICANT = {"MGA": 0} | dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 2)

_MINIMUM = {
    "AED": 200, "AUD": 50, "BGN": 100, "BRL": 50, "CAD": 50, "CHF": 50, "COP": 200000, "CZK": 1500, "DKK": 250,
    "EUR": 50, "GBP": 30, "HKD": 400, "HUF": 17500, "INR": 50, "JPY": 50, "MXN": 1000, "MYR": 200, "NOK": 300,
    "NZD": 50, "PLN": 200, "RON": 200, "SEK": 300, "SGD": 50, "THB": 1000, "USD": 50,
}  # fmt: skip
_OTHERS = {0: 50, 2: 50, 3: 500, 4: 5000}  # by decimal places; Stripe's least is worth about half a dollar


def minimum(currency: str) -> int:
    """The least that is charged at once, in our minor units. Less goes on the next invoice."""
    return _MINIMUM.get(currency) or _OTHERS[exponent(currency)]


def step(currency: str) -> int:
    """Charged amounts are multiples of this many of our minor units: 10 for KWD, 100 for MGA, else 1."""
    places = exponent(currency)
    return int(10 ** (places - _SIGNIFICANT.get(currency, places)))


def to_stripe(amount_minor: int, currency: str) -> int:
    """Raises Invalid for an amount that Stripe cannot express."""
    if amount_minor % step(currency):
        raise Invalid.field("amount", f"{currency} is charged in multiples of {step(currency)} minor units")
    shift = _PLACES.get(currency, exponent(currency)) - exponent(currency)
    return int(amount_minor * 10**shift) if shift >= 0 else amount_minor // 10**-shift


def from_stripe(amount: int, currency: str) -> int:
    """Our minor units. Raises Invalid where Stripe's amount is no whole number of them."""
    shift = exponent(currency) - _PLACES.get(currency, exponent(currency))
    if shift < 0 and amount % 10**-shift:
        raise Invalid.field("amount", f"{amount} of Stripe's is no whole amount of {currency}")
    return int(amount * 10**shift) if shift >= 0 else amount // 10**-shift
