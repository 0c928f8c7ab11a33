"""Billing details, and the tax that follows from them."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from tests.billing.conftest import Buy, add_plan, at, last_invoice, paid
from tests.billing.test_refunds import refund

from ximler.billing import account, changes, checkouts, details, invoices, run, subscriptions
from ximler.billing.pdf import content
from ximler.billing.sandbox import Sandbox
from ximler.billing.tax import tax_of
from ximler.core.actor import Actor
from ximler.core.business import Business
from ximler.core.errors import Invalid
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount, Details

RATES = {"DE": Decimal(19), "FR": Decimal("5.5"), "GB": Decimal(20)}
GERMAN, FRENCH = "DE136695976", "FR40303265045"


@pytest.fixture
def business(database: Database, monkeypatch: pytest.MonkeyPatch) -> Business:
    business = Business(seller="Acme GmbH", country="DE", rates=RATES)
    monkeypatch.setattr(database, "business", business)
    return business


@pytest.mark.parametrize(
    ("country", "vat_id", "percent", "reverse"),
    [
        (None, None, "19", False),  # unknown: the seller's
        ("DE", None, "19", False),
        ("DE", GERMAN, "19", False),  # at home
        ("FR", None, "5.5", False),
        ("FR", FRENCH, "5.5", True),
        ("GB", "GB980780684", "20", False),  # not in the EU
        ("US", None, "0", False),
    ],
)
def test_the_tax_is_that_of_the_customers_country(
    country: str | None, vat_id: str | None, percent: str, reverse: bool, business: Business
) -> None:
    found = tax_of(business, BillingAccount(id=None, details=Details(country=country, vat_id=vat_id)))  # type: ignore[arg-type]
    assert (found.percent, found.reverse_charge) == (Decimal(percent), reverse)


def test_nothing_is_taxed_without_settings() -> None:
    assert tax_of(Settings().business, BillingAccount(id=None)).percent == 0  # type: ignore[arg-type]
    settings = Settings(seller_country="DE", tax_rates=("DE=19", "FR=5.5"), tax_inclusive=True)
    assert settings.business == Business(country="DE", rates={"DE": Decimal(19), "FR": Decimal("5.5")}, inclusive=True)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"country": "XX"}, "country"),
        ({"country": "DE", "vat_id": "DE136695977"}, "vatId"),  # check digit
        ({"country": "FR", "vat_id": GERMAN}, "vatId"),
        ({"vat_id": GERMAN}, "vatId"),
        ({"name": "a" * 201}, "name"),
        ({"name": "Ada\nVAT ID DE1"}, "name"),
        ({"address": "a\u202eb"}, "address"),
    ],
)
async def test_invalid_details_are_refused(values: dict[str, Any], field: str, database: Database, ada: Actor) -> None:
    with pytest.raises(Invalid) as refused:
        await details.update(database, ada, **values)
    assert list(refused.value.fields) == [field]
    assert await details.read(database, ada) == Details()


async def test_vat_ids_are_stored_in_one_form(database: Database, ada: Actor) -> None:
    for given, stored in (("de 136 695 976", GERMAN), ("136695976", GERMAN), (None, None)):
        assert (await details.update(database, ada, country="de", vat_id=given)).vat_id == stored
    assert (await details.update(database, ada, country="GR", vat_id="094259216")).vat_id == "EL094259216"


@pytest.mark.slow
async def test_preview_charge_renewal_and_refunds_agree_on_tax_after_discount(
    database: Database, rail: Sandbox, settings: Settings, ada: Actor, buy: Buy, business: Business
) -> None:
    at(database, 2027, 1, 1)
    await details.update(database, ada, name="Ada Ltd", address="1 High St\nBerlin", country="DE", vat_id=GERMAN)
    begun = await checkouts.start(
        database, rail, settings, ada, plan_id="pro", coupon="WELCOME20", return_url="http://localhost/"
    )
    previewed = await checkouts.quote(database, begun)
    assert previewed is not None
    assert (previewed.tax_minor, previewed.due_minor) == (441, 2761)  # 19 % of 23.20
    await buy(ada, coupon="WELCOME20")
    invoice = await last_invoice(database, ada)
    assert invoice.lines[-1] == {
        "kind": "TAX", "description": "Tax 19 %", "amount_minor": 441, "included": False, "rate": "19", "country": "DE",
    }  # fmt: skip
    assert content(invoice, corrects=None)["buyer"][:5] == ["Ada Ltd", "1 High St", "Berlin", "DE", f"VAT ID {GERMAN}"]
    for amount in (1000, None):
        await refund(database, rail, ada, amount)
    notes = [each for each in (await invoices.page(database, ada)).items if each.kind == "CREDIT_NOTE"]
    assert sum(each.tax_minor for each in notes) == -441
    assert notes[0].lines[-1]["rate"] == "19"
    at(database, 2027, 1, 16, 12)
    change = await changes.preview(database, ada, plan_id="enterprise")
    assert change.due_minor == 4950 - 1160 + 720  # 19 % of 37.90 is 7.201
    await changes.change(database, rail, ada, plan_id="enterprise")
    upcoming = subscriptions.upcoming(await account.find(database, ada.require_user()), business)
    assert upcoming.quote.due_minor == 11781
    await run.forward(database, rail, datetime(2027, 2, 2, tzinfo=UTC))
    assert (await paid(database, ada)) == [4510, 11781]


@pytest.mark.slow
async def test_inclusive_prices_contain_the_tax_and_reverse_charge_adds_none(
    database: Database, rail: Sandbox, ada: Actor, buy: Buy, business: Business, monkeypatch: pytest.MonkeyPatch
) -> None:
    await details.update(database, ada, country="FR", vat_id=FRENCH)
    await add_plan(database, "team", 100)
    await buy(ada, "team")
    invoice = await last_invoice(database, ada)
    assert (invoice.tax_minor, invoice.due_minor, invoice.buyer_vat_id) == (0, 10000, FRENCH)
    assert "Reverse charge" in invoice.lines[-1]["description"]
    monkeypatch.setattr(database, "business", Business(country="DE", rates=RATES, inclusive=True))
    await details.update(database, ada, country="GB")
    database.clock.offset_ms += 32 * 86_400_000
    await run.run(database, rail)
    invoice = await last_invoice(database, ada)
    assert (invoice.tax_minor, invoice.due_minor) == (1667, 10000)
