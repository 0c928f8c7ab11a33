"""The business that sells: its details on invoices. Parsed from the settings once; every `Database` carries it, so
that a step of billing reads it without a round trip.
"""

import msgspec

__all__ = ["Business"]


class Business(msgspec.Struct, frozen=True, kw_only=True):
    """`seller`: name and address on invoices, lines separated by `;`."""

    seller: str = "Ximler"
