"""The sandbox's payment page and inbox: a customer pays with a test card, and has the plan at once."""

import io
from collections.abc import AsyncIterator
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from bson import ObjectId
from pypdf import PdfReader
from tests.serving import PASSWORD, Client, serve

from ximler.accounts import roles
from ximler.billing import events, run
from ximler.billing.rails import sandbox
from ximler.billing.sandbox import Sandbox, sign
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database

START = """mutation ($plan: ID!, $coupon: String) {
  startCheckout(planId: $plan, coupon: $coupon, returnUrl: "http://localhost:5173/back?from=\\"pay\\"") { id url } }"""
BACK = 'http://localhost:5173/back?from="pay"'
ME = "{ me { subscription { planId status } usage { resource limit } } }"
GOOD, DECLINED, LATER = "4242 4242 4242 4242", "4000000000009995", "4000000000000077"


@pytest.fixture
async def rail(database: Database, settings: Settings) -> AsyncIterator[Sandbox]:
    yield sandbox(database, settings)
    assert await verify(database) == []


async def begin(client: Client, plan: str = "pro", coupon: str | None = None) -> str:
    """The path of the payment page."""
    begun = (await client.ask(START, plan=plan, coupon=coupon))["startCheckout"]
    return urlsplit(begun["url"]).path


async def pay(client: Client, path: str, card: str, **headers: str) -> httpx.Response:
    return await client.http.post(path, data={"card": card}, headers=headers)


async def plan_and_projects(client: Client) -> tuple[str | None, int]:
    me = (await client.ask(ME))["me"]
    limits = {each["resource"]: each["limit"] for each in me["usage"]}
    return (me["subscription"] or {}).get("planId"), limits["projects"]


@pytest.mark.slow
async def test_a_paid_plan_takes_effect_at_once(ada: Client, rail: Sandbox) -> None:
    path = await begin(ada, coupon="WELCOME20")
    shown = await ada.http.get(path)
    assert shown.status_code == 200
    assert "You pay 23.20 USD now for Pro, regularly 29.00 USD a month." in shown.text
    assert "form-action 'self' http://localhost:5173;" in shown.headers["content-security-policy"]
    paid = await pay(ada, path, GOOD, **{"sec-fetch-site": "same-origin"})
    assert (paid.status_code, paid.headers["location"]) == (303, BACK)
    assert await plan_and_projects(ada) == ("pro", 100)
    assert "Pro is paid" in (await ada.http.get(path)).text
    assert (await pay(ada, path, GOOD)).status_code == 303


@pytest.mark.slow
async def test_the_invoice_of_a_purchase_is_a_pdf_for_its_owner_only(ada: Client, rail: Sandbox) -> None:
    await pay(ada, await begin(ada, coupon="WELCOME20"), GOOD)
    found = await ada.ask("{ invoices { nodes { number url pdfUrl } } payments { nodes { invoiceUrl } } }")
    (invoice,), (payment,) = found["invoices"]["nodes"], found["payments"]["nodes"]
    assert payment["invoiceUrl"] == invoice["url"]
    path = urlsplit(invoice["pdfUrl"]).path
    bearer = {"Authorization": f"Bearer {ada.token}"}
    answer = await ada.http.get(path, headers=bearer)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf")
    text = PdfReader(io.BytesIO(answer.content)).pages[0].extract_text()
    assert f"Invoice {invoice['number']}" in text
    assert "Paid 23.20 USD" in text
    tag = answer.headers["etag"]
    for method in ("GET", "HEAD"):
        again = await ada.http.request(method, path, headers={**bearer, "If-None-Match": f'"x", W/{tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    head = await ada.http.head(path, headers=bearer)
    assert (head.headers["etag"], head.headers["content-length"]) == (tag, str(len(answer.content)))
    stranger = await Client(ada.app).join("eve@example.com")
    answers = [
        await stranger.http.get(path, headers={"Authorization": f"Bearer {stranger.token}"}),
        await ada.http.get(path.replace(".pdf", ".html"), headers=bearer),
        await ada.http.get("/v1/invoices/x.pdf", headers=bearer),
        await ada.http.get(path),
    ]
    assert [each.status_code for each in answers] == [404, 404, 422, 401]
    await stranger.http.aclose()


@pytest.mark.slow
async def test_the_page_of_an_invoice_shows_what_the_pdf_shows(ada: Client, database: Database, rail: Sandbox) -> None:
    await pay(ada, await begin(ada, coupon="WELCOME20"), GOOD)
    (invoice,) = (await ada.ask("{ invoices { nodes { id number url pdfUrl } } }"))["invoices"]["nodes"]
    await database.raw["invoices"].update_one({}, {"$set": {"buyerName": "<script>alert(1)</script>"}})
    path, bearer = urlsplit(invoice["url"]).path, {"Authorization": f"Bearer {ada.token}"}
    shown = await ada.http.get(path, headers=bearer)
    assert (shown.status_code, shown.headers["cache-control"]) == (200, "no-store")
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert "<script" not in shown.text
    page = Text(shown.text)
    pdf = PdfReader(io.BytesIO((await ada.http.get(urlsplit(invoice["pdfUrl"]).path, headers=bearer)).content))
    text = " ".join(pdf.pages[0].extract_text().split())
    for each in page.texts:
        assert each in text or each in (f"Invoice {invoice['number']} · Ximler", "Download as PDF"), (each, text)
    assert {"Pro", "29.00 USD", "-5.80 USD", "Paid", "23.20 USD", "<script>alert(1)</script>"} <= set(page.texts)
    assert page.links == [urlsplit(invoice["pdfUrl"]).path]

    stranger = await Client(ada.app).join("eve@example.com")
    as_stranger = {"Authorization": f"Bearer {stranger.token}"}
    anonymous = await ada.http.get(path)
    assert (anonymous.status_code, "Sign in to see the invoice" in anonymous.text) == (401, True)
    assert (await stranger.http.get(path, headers=as_stranger)).status_code == 404
    eve = (await stranger.ask("{ me { id } }"))["me"]["id"]
    await roles.grant(database, Actor(kind="operator", via="cli"), ObjectId(eve), "operator")
    await stranger.sign_in("eve@example.com")
    as_operator = {"Authorization": f"Bearer {stranger.token}"}
    assert (await stranger.http.get(path, headers=as_operator)).status_code == 200
    viewed = await database.raw["auditlogs"].find_one({"action": "accounts.user.viewed"})
    assert viewed is not None
    await stranger.http.aclose()


class Text(HTMLParser):
    """The texts of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str | None] = []
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.links += [value for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._style:
            self.texts.append(data.strip())


@pytest.mark.slow
async def test_a_customer_whose_renewal_failed_enters_another_card_and_has_paid(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    await pay(ada, await begin(ada), GOOD)
    lost = {"method.id": "pm_4000000000009987"}
    await database.raw["billingaccounts"].update_many({}, {"$set": lost})
    database.clock.offset_ms += 32 * 86_400_000
    await run.run(database, rail)
    database.clock.offset_ms = 0
    found = await ada.ask(
        "{ paymentMethods { declined } me { subscription { status } } invoices { nodes { id status } } }"
    )
    assert (found["paymentMethods"], found["me"]["subscription"]["status"]) == ([{"declined": True}], "PAST_DUE")
    unpaid = found["invoices"]["nodes"][0]
    declined = await ada.ask("mutation ($id: ID!) { payInvoice(id: $id) { status } }", id=unpaid["id"])
    assert (unpaid["status"], declined.code) == ("OPEN", "PAYMENT_DECLINED")
    added = 'mutation { addPaymentMethod(returnUrl: "http://localhost/back") { url kind quote { dueMinor } } }'
    begun = (await ada.ask(added))["addPaymentMethod"]
    assert (begun["kind"], begun["quote"]) == ("CARD", None)
    page, bearer = f"/invoices/{unpaid['id']}", {"Authorization": f"Bearer {ada.token}"}
    shown = await ada.http.get(page, headers=bearer)
    assert f'<form class="links" method="post" action="{page}/pay">' in shown.text
    browser = Client(ada.app).http  # with the session in a cookie
    ours, theirs = {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "cross-site"}
    await browser.post("/v1/session", json={"email": "ada@example.com", "password": PASSWORD}, headers=ours)
    assert (await browser.post(f"{page}/pay", headers=theirs)).status_code == 403
    leads = await browser.post(f"{page}/pay", headers=ours)
    assert leads.status_code == 303
    await browser.aclose()
    path = urlsplit(leads.headers["location"]).path
    assert "charged to it at once" in (await ada.http.get(path)).text
    assert (await pay(ada, path, GOOD)).status_code == 303
    assert "The card is saved" in (await ada.http.get(path)).text
    found = await ada.ask("{ me { subscription { status } } invoices { nodes { status } } }")
    assert found["me"]["subscription"]["status"] == "ACTIVE"
    assert [each["status"] for each in found["invoices"]["nodes"]] == ["PAID", "PAID"]
    assert "Pay now" not in (await ada.http.get(page, headers=bearer)).text
    paid = await ada.http.post(f"{page}/pay", headers=bearer)
    assert (paid.status_code, urlsplit(paid.headers["location"]).path) == (303, page)
    assert (await ada.http.post(f"{page}/pay")).status_code == 401


async def test_the_form_needs_no_script_and_names_its_fields(ada: Client, rail: Sandbox) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    path = await begin(ada)
    Reader().feed((await pay(ada, path, "4111111111111111")).text)
    assert not {tag for tag, _ in tags} & {"script", "iframe", "img", "link"}
    assert [attributes for tag, attributes in tags if tag == "form"] == [{"method": "post", "action": path}]
    (field,) = [attributes for tag, attributes in tags if tag == "input"]
    assert (field["name"], field["aria-describedby"]) == ("card", "problem")
    assert [attributes["href"] for tag, attributes in tags if tag == "a"] == [BACK]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "says"),
    [
        (DECLINED, "The payment was declined: insufficient funds. Try another card."),
        ("4111111111111111", "The card is not one of the test numbers."),
        ("", "The card is not one of the test numbers."),
        ("<script>alert(1)</script>", "The card is not one of the test numbers."),
    ],
)
async def test_a_card_that_is_refused_shows_the_form_again(ada: Client, rail: Sandbox, card: str, says: str) -> None:
    path = await begin(ada)
    refused = await pay(ada, path, card)
    assert refused.status_code == 422
    assert says in refused.text
    assert "<script" not in refused.text
    assert await plan_and_projects(ada) == (None, 3)
    assert (await pay(ada, path, GOOD)).status_code == 303
    assert await plan_and_projects(ada) == ("pro", 100)


@pytest.mark.slow
async def test_a_payment_that_takes_time_returns_too(ada: Client, rail: Sandbox) -> None:
    path = await begin(ada)
    assert (await pay(ada, path, LATER)).status_code == 303
    assert await plan_and_projects(ada) == (None, 3)
    assert "under way" in (await ada.http.get(path)).text


async def test_another_site_cannot_send_the_form(ada: Client, database: Database, rail: Sandbox) -> None:
    path = await begin(ada)
    for site in ("cross-site", "same-site"):
        assert (await pay(ada, path, GOOD, **{"sec-fetch-site": site})).status_code == 403
    assert await database.raw["billingevents"].count_documents({}) == 0


async def test_unknown_and_expired_checkouts_are_a_page_that_says_so(
    ada: Client, database: Database, rail: Sandbox
) -> None:
    path = await begin(ada)
    await database.raw["checkouts"].update_many(
        {}, {"$set": {"expiresAt": database.clock.now() - timedelta(seconds=1)}}
    )
    for gone in (path, "/sandbox/checkout/cs_none"):
        for answer in (await ada.http.get(gone), await pay(ada, gone, GOOD)):
            assert answer.status_code == 404
            assert "begin again" in answer.text


async def test_events_are_stored_once_if_their_signature_is_right(
    client: Client, database: Database, rail: Sandbox
) -> None:
    body = msgspec.json.encode({"id": "evt_1", "kind": "intent.changed", "object_id": "pi_1"})
    good = sign(rail._secret, database.clock.now(), body)

    async def send(body: bytes, signature: str) -> int:
        answer = await client.http.post("/webhooks/sandbox", content=body, headers={"Sandbox-Signature": signature})
        return answer.status_code

    assert [await send(body, good) for _ in range(2)] == [200, 200]
    assert await database.raw["billingevents"].count_documents({}) == 1
    assert [await send(body, ""), await send(body + b" ", good), await send(b"x" * 20_000, good)] == [401, 401, 413]
    assert await send(b"{}", sign(rail._secret, database.clock.now(), b"{}")) == 422
    assert await events.process(database, rail) == 1


@pytest.mark.slow
async def test_outside_of_development_there_is_no_sandbox(
    settings: Settings, database: Database, mongodb_uri: str
) -> None:
    live = msgspec.structs.replace(settings, database=database.name, environment="production")
    async with serve(live, mongodb_uri) as app:
        client: Any = Client(app).http
        answers = [
            await client.get("/sandbox/checkout/cs_x"),
            await client.post("/sandbox/checkout/cs_x", data={"card": GOOD}),
            await client.post("/webhooks/sandbox", content=b"{}"),
        ]
        await client.aclose()
    assert [each.status_code for each in answers] == [404, 404, 404]
