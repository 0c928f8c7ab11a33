"""The business that sells: its details on invoices, and the tax that it charges. Parsed from the settings
once; every `Database` carries it, so that a step of billing reads it without a round trip.
"""

from decimal import Decimal

import msgspec

__all__ = ["Business"]


class Business(msgspec.Struct, frozen=True, kw_only=True):
    """`seller`: name and address on invoices, lines separated by `;`.

    `rates`: percent of tax by the buyer's country (ISO 3166); `inclusive`:
    prices contain it. `country`: the seller's.
    """

    seller: str = "Ximler"
    country: str | None = None
    rates: dict[str, Decimal] = {}
    inclusive: bool = False
