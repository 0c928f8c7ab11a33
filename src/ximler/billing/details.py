"""Billing details of a customer. They are part of `billingaccounts`, and decide the tax (`billing.tax`).

VAT ids are checked by format and check digits, offline.
"""

from typing import Any

from bson import ObjectId
from stdnum import get_cc_module
from stdnum.exceptions import ValidationError

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing.account import ensure, find, in_turn, lock, store
from ximler.billing.tax import EU
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.schema.billing_account import Details

__all__ = ["Details", "read", "update"]

# ISO 3166-1 alpha-2, and XI: Northern Ireland, which is in the EU's VAT area for goods.
_COUNTRIES = frozenset(
    "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC "
    "CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD "
    "GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH "
    "KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW "
    "MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC "
    "SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY "
    "UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW".split()
)
_PREFIXES = {"GR": "EL"}  # of VAT ids, where it is not the country's code
_MAX_NAME = 200
_MAX_ADDRESS = 500
_MAX_ID = 20


async def read(database: Database, actor: Actor) -> Details:
    """The actor's billing details; empty ones if none were given. One command."""
    return (await find(database, actor.require_user())).details or Details()


async def update(
    database: Database,
    actor: Actor,
    *,
    name: str | None = None,
    address: str | None = None,
    country: str | None = None,
    vat_id: str | None = None,
) -> Details:
    """Replace the actor's billing details. They appear on invoices made from now on,
    and decide their tax. Audited.

    Raises Invalid naming the field, as for a VAT id whose check digits are
    wrong or that is of another country.
    """
    user_id = actor.require_user()
    country = _text("country", country, 2)
    country = country.upper() if country else None
    if country is not None and country not in _COUNTRIES:
        raise Invalid.field("country", f"{country} is not a country: two letters of ISO 3166, such as DE")
    details = Details(
        name=_text("name", name, _MAX_NAME),
        address=_text("address", address, _MAX_ADDRESS),
        country=country,
        vat_id=_vat_id(vat_id, country),
    )
    await ensure(database, user_id)

    async def write(transaction: Database) -> Details:
        account = await lock(transaction, user_id)
        account.details = details
        await _record(transaction, actor, user_id, country=details.country, vatId=details.vat_id)
        await store(transaction, account)
        return details

    return await in_turn(database, user_id, write)


async def _record(transaction: Database, actor: Actor, user_id: ObjectId, **after: Any) -> None:
    values = {name: value for name, value in after.items() if value is not None}
    what = Action.BILLING_DETAILS_CHANGED
    await records.write(transaction, actor, what, resource="users", resource_id=user_id, user_id=user_id, after=values)


def _text(field: str, text: str | None, most: int) -> str | None:
    text = text.strip() if text else None
    lines = text.split("\n") if text and field == "address" else [text or ""]
    if text and (len(text) > most or not all(line.isprintable() for line in lines)):
        raise Invalid.field(field, f"up to {most} printable characters")
    return text or None


def _vat_id(text: str | None, country: str | None) -> str | None:
    """The id in its compact form, with the country's prefix in the EU. Raises Invalid."""
    text = _text("vatId", text, _MAX_ID)
    if text is None:
        return None
    if country is None:
        raise Invalid.field("vatId", "needs the country")
    module = get_cc_module(country, "vat")
    if module is None:
        return text
    prefix = _PREFIXES.get(country, country)
    try:
        number = module.validate(text)
    except ValidationError:
        raise Invalid.field("vatId", f"{text!r} is not a VAT id of {country}") from None
    return number if country not in EU or number.startswith(prefix) else prefix + number
