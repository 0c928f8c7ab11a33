"""Money: integer minor units and a currency. No float arithmetic anywhere.

The stored form stays a Number in major units (29, 29.99): `Money.of` reads it and `major` writes it, exact
both ways up to 10^15 minor units. (A double keeps every decimal of 15 digits; of 16 it does not:
80000000000000.01 reads back as .02.) Past that, both are Invalid rather than wrong by a cent.
"""

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

import msgspec

from ximler.core.errors import Invalid

__all__ = ["Money", "exponent"]

# ISO 4217:2015 minor units. Two is the rule; these are the currencies that differ.
_EXPONENTS = (
    dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0)
    | dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3)
    | dict.fromkeys("CLF UYW".split(), 4)
)
_TWO = frozenset(
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD "
    "CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD "
    "GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA "
    "MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR "
    "RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD "
    "TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG".split()
)


_MOST = 10**15


def exponent(currency: str) -> int:
    """Decimal places of an ISO 4217 currency: 2 for USD, 0 for JPY, 3 for KWD. Raises Invalid for an unknown
    code.
    """
    if currency in _TWO:
        return 2
    try:
        return _EXPONENTS[currency]
    except KeyError:
        raise Invalid.field(
            "currency", f"{currency[:20]!r} is not an ISO 4217 currency code such as USD or EUR"
        ) from None


class Money(msgspec.Struct, frozen=True, order=False):
    """An amount: `minor` units (cents) of `currency`. Adding two currencies raises Invalid."""

    minor: int
    currency: str

    @classmethod
    def of(cls, major: float, currency: str) -> "Money":
        """From a stored Number in major units. Raises Invalid if the currency
        cannot express it (29.999 USD)."""
        places = exponent(currency)
        if abs(major) > _MOST:
            raise _inexact()
        try:
            scaled = Decimal(repr(major)).scaleb(places)
            minor = int(scaled)
        except (InvalidOperation, ValueError, OverflowError):
            raise Invalid.field("amount", f"{major!r} is not an amount of money") from None
        if abs(minor) > _MOST:
            raise _inexact()
        if minor != scaled:
            raise Invalid.field("amount", f"{major!r} has more decimal places than {currency} ({places})")
        return cls(minor, currency)

    @property
    def major(self) -> int | float:
        """The Number to store: an int where it is whole, as a Mongoose application would write it. Raises
        Invalid past 10^15 minor units.
        """
        if abs(self.minor) > _MOST:
            raise _inexact()
        value = Decimal(self.minor).scaleb(-exponent(self.currency))
        whole = int(value)
        return whole if whole == value else float(value)

    def percent(self, percentage: int | Decimal) -> "Money":
        """That share of the amount, rounded half up, once."""
        share = Decimal(self.minor) * Decimal(percentage) / 100
        return Money(int(share.quantize(Decimal(1), rounding=ROUND_HALF_UP)), self.currency)

    def __add__(self, other: "Money") -> "Money":
        return Money(self.minor + self._same(other).minor, self.currency)

    def __sub__(self, other: "Money") -> "Money":
        return Money(self.minor - self._same(other).minor, self.currency)

    def __str__(self) -> str:
        return f"{Decimal(self.minor).scaleb(-exponent(self.currency))} {self.currency}"

    def _same(self, other: "Money") -> "Money":
        if other.currency != self.currency:
            raise Invalid.field("currency", f"{other.currency} cannot be combined with {self.currency}")
        return other


def _inexact() -> Invalid:
    return Invalid.field("amount", "is more than can be kept exactly (10^15 minor units)")
