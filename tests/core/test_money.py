"""Money: exact in both directions, refused rather than wrong, never a float in between."""

import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.core.errors import Invalid
from ximler.core.money import Money, exponent

# ISO 4217, by decimal places; written down apart from the source's own table.
ISO = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY "
    "COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR "
    "IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD "
    "NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP "
    "SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG",
}
PLACES = {currency: places for places, currencies in ISO.items() for currency in currencies.split()}
MOST = 10**15


@pytest.mark.parametrize("currency", sorted(PLACES))
def test_every_currency_has_its_decimal_places(currency: str) -> None:
    assert exponent(currency) == PLACES[currency]


@pytest.mark.parametrize("currency", ["", "usd", "US", "USDT", "BTC", "XXX", "€", "US\0"])
def test_an_unknown_currency_is_rejected_by_name(currency: str) -> None:
    with pytest.raises(Invalid) as caught:
        exponent(currency)
    assert caught.value.fields.keys() == {"currency"}


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.integers(-MOST, MOST) | st.integers(MOST - 10_000, MOST), st.sampled_from(sorted(PLACES)))
def test_an_amount_survives_being_stored_as_a_number_exactly(minor: int, currency: str) -> None:
    money = Money(minor, currency)
    stored = money.major
    assert Money.of(stored, currency) == money
    assert Decimal(repr(stored)) * 10 ** PLACES[currency] == minor
    assert isinstance(stored, int) == (minor % 10 ** PLACES[currency] == 0)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.integers(0, MOST // 10**4), st.integers(0, 10_000), st.sampled_from(sorted(PLACES)))
def test_a_price_as_a_person_writes_it_is_read_exactly(whole: int, fraction: int, currency: str) -> None:
    text = f"{whole}.{fraction:05d}"[: -5 + PLACES[currency]] if PLACES[currency] else str(whole)
    assert Money.of(float(text), currency).minor == Decimal(text) * 10 ** PLACES[currency]


def test_the_limit_of_exact_amounts_is_symmetric() -> None:
    assert Money.of(10**13, "USD").minor == MOST
    assert Money(MOST, "USD").major == 10**13
    assert Money(-MOST, "JPY").major == -MOST
    for currency in ("USD", "JPY", "KWD", "CLF"):
        for sign in (1, -1):
            with pytest.raises(Invalid, match="kept exactly"):
                _ = Money(sign * (MOST + 1), currency).major
            with pytest.raises(Invalid, match="kept exactly"):
                Money.of(sign * (MOST // 10 ** PLACES[currency] + 1), currency)


@pytest.mark.parametrize(
    "huge", [2**53, 10**30 + 1, 1e300, -1e300, math.inf, -math.inf, pytest.param(10**5000, id="5001 digits")]
)
def test_a_huge_amount_is_refused_rather_than_rounded(huge: float) -> None:
    with pytest.raises(Invalid) as caught:
        Money.of(huge, "USD")
    assert caught.value.fields.keys() == {"amount"}
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("nothing", [math.nan, True, False])
def test_non_numbers_are_not_amounts(nothing: float) -> None:
    with pytest.raises(Invalid) as caught:
        Money.of(nothing, "USD")
    assert caught.value.fields.keys() == {"amount"}


@pytest.mark.parametrize(
    ("major", "currency"),
    [
        (29.999, "USD"),
        (0.001, "EUR"),
        (1.5, "JPY"),
        (1e-9, "JPY"),
        (5e-324, "KWD"),
        (1.2345, "KWD"),
        (0.1 + 0.2, "USD"),
    ],
)
def test_more_decimal_places_than_the_currency_has_are_refused(major: float, currency: str) -> None:
    with pytest.raises(Invalid, match=f"more decimal places than {currency}"):
        Money.of(major, currency)


@pytest.mark.parametrize(
    ("major", "currency", "minor", "text"),
    [
        (0, "USD", 0, "0.00 USD"),
        (-0.0, "USD", 0, "0.00 USD"),
        (29, "USD", 2900, "29.00 USD"),
        (29.0, "USD", 2900, "29.00 USD"),
        (29.99, "USD", 2999, "29.99 USD"),
        (0.07, "USD", 7, "0.07 USD"),
        (-1.10, "EUR", -110, "-1.10 EUR"),
        (500, "JPY", 500, "500 JPY"),
        (1.234, "KWD", 1234, "1.234 KWD"),
        (1e3, "KWD", 1_000_000, "1000.000 KWD"),
        (0.0001, "CLF", 1, "0.0001 CLF"),
        (1.15, "USD", 115, "1.15 USD"),  # 1.15 * 100 is 114.99999999999999
        (4.35, "USD", 435, "4.35 USD"),
    ],
)
def test_amounts_are_parsed_and_formatted_for_people(major: float, currency: str, minor: int, text: str) -> None:
    money = Money.of(major, currency)
    assert money.minor == minor
    assert str(money) == text


def test_whole_amounts_are_stored_as_integers_as_in_javascript() -> None:
    assert repr(Money(2900, "USD").major) == "29"
    assert repr(Money(2999, "USD").major) == "29.99"
    assert repr(Money(0, "KWD").major) == "0"


def test_amounts_of_one_currency_add_up_and_two_do_not_mix() -> None:
    assert Money(1, "USD") + Money(2, "USD") == Money(3, "USD")
    assert Money(1, "USD") - Money(2, "USD") == Money(-1, "USD")
    assert Money(1, "USD") != Money(1, "EUR")
    for combine in (Money.__add__, Money.__sub__):
        with pytest.raises(Invalid) as caught:
            combine(Money(1, "USD"), Money(1, "EUR"))
        assert caught.value.fields.keys() == {"currency"}


@pytest.mark.parametrize(
    ("minor", "percentage", "share"),
    [
        (2900, 20, 580),
        (2999, 20, 600),  # 599.8
        (125, 50, 63),  # 62.5: half up
        (-125, 50, -63),
        (1, 50, 1),
        (1, 49, 0),
        (999, 0, 0),
        (999, 100, 999),
        (1000, Decimal("12.5"), 125),
        (10**15, Decimal("33.333"), 333_330_000_000_000),
    ],
)
def test_a_share_is_rounded_half_up_once(minor: int, percentage: int | Decimal, share: int) -> None:
    assert Money(minor, "USD").percent(percentage) == Money(share, "USD")


@settings(deadline=None)
@given(st.integers(0, MOST), st.integers(0, 100))
def test_a_share_and_its_rest_are_never_apart_by_more_than_the_rounding(minor: int, percentage: int) -> None:
    share = Money(minor, "USD").percent(percentage).minor
    assert 0 <= share <= minor
    assert abs(share * 100 - minor * percentage) <= 50


def test_money_is_a_value() -> None:
    assert len({Money(1, "USD"), Money(1, "USD"), Money(1, "EUR")}) == 2
    with pytest.raises(AttributeError):
        Money(1, "USD").minor = 2  # type: ignore[misc]  # that is the point
