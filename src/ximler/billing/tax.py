"""The tax that follows from a customer's billing details. Pure.

- The rate is that of the customer's country in `XIMLER_TAX_RATES`, or of the seller's country while the
  customer has not given one. A country without a rate is not taxed.
- A customer in another EU country than the seller, with a valid VAT id of that country, is not charged tax:
  reverse charge (Directive 2006/112/EC, article 196).
"""

from decimal import Decimal

from stdnum.eu.vat import MEMBER_STATES

from ximler.billing.pricing import NO_TAX, Tax
from ximler.core.business import Business
from ximler.schema.billing_account import BillingAccount, Details

__all__ = ["EU", "tax_of"]

EU = frozenset(country.upper() for country in MEMBER_STATES) - {"XI"}


def tax_of(business: Business, account: BillingAccount) -> Tax:
    """The tax on the account's next invoice."""
    details = account.details or Details()
    country = details.country or business.country
    if country is None:
        return NO_TAX
    percent = business.rates.get(country, Decimal(0))
    abroad = country in EU and business.country in EU and country != business.country
    if abroad and details.vat_id is not None:
        return Tax(percent=percent, inclusive=business.inclusive, reverse_charge=True, country=country)
    return Tax(percent=percent, inclusive=business.inclusive, country=country) if percent else NO_TAX
