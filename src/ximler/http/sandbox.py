"""The sandbox over HTTP: its hosted payment page, and the inbox of its signed events. Neither exists outside
of development.

The address of a page is the secret of one checkout. A page of another site cannot send its form.
"""

from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.enums import RequestEncodingType
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.params import Body, PathParameter

from ximler.billing import checkouts, events
from ximler.billing.checkouts import Checkout
from ximler.billing.rails import NoProvider
from ximler.billing.rails import sandbox as sandbox_of
from ximler.billing.sandbox import CARDS, Sandbox
from ximler.core.errors import Invalid, NotFound
from ximler.core.money import Money
from ximler.http.bodies import body_of
from ximler.http.cookies import ForeignOrigin
from ximler.http.pages import page, page_of
from ximler.http.problems import documented

__all__ = ["routes"]

_OWN_PAGE = (None, "none", "same-origin")  # older browsers send no Sec-Fetch-Site
_Session = Annotated[str, PathParameter(max_length=200)]


class CardForm(msgspec.Struct, frozen=True):
    card: str = ""


@get(
    "/sandbox/checkout/{session:str}",
    **page_of("Payment page of the sandbox", tag="billing", _404="There is no such checkout, or no sandbox"),
)
async def ask_card(session: _Session, state: State) -> Response[str]:
    """Development only. Accepts test cards only; no money moves."""
    _, checkout = await _find(state, session)
    if checkout.status == "OPEN":
        return await _form(state, session, checkout)
    return _over(checkout)


@post(
    "/sandbox/checkout/{session:str}",
    **page_of(
        "Pay with a test card",
        tag="billing",
        _303="The payment was made or is under way; leads to the checkout's return address",
        _403="Sent by another site",
        _404="There is no such checkout, it has expired, or there is no sandbox",
        _422="The card is not one of the test cards, or was declined",
        _503="The database is unavailable",
    ),
)
async def take_card(
    session: _Session,
    data: Annotated[CardForm, Body(media_type=RequestEncodingType.URL_ENCODED)],
    request: Request[Any, Any, Any],
    state: State,
) -> Response[str]:
    """The page's form. The payment is made before this answers, so that the plan's limits hold at once."""
    if request.headers.get("sec-fetch-site") not in _OWN_PAGE:
        raise ForeignOrigin("This was sent by another site: pay on the payment page itself")
    rail, checkout = await _find(state, session)
    if checkout.status == "OPEN":
        try:
            await rail.enter_card(session, data.card)
        except Invalid as error:
            return await _form(state, session, checkout, error=f"The card {error.fields['card']}.")
        checkout = await checkouts.complete(state.database, rail, checkout.id)
    if checkout.status == "OPEN":
        return await _form(state, session, checkout, error=f"{checkout.problem}. Try another card.")
    if checkout.status in ("PAID", "PROCESSING"):
        return Response("", status_code=303, headers={"Location": checkout.return_url, "Cache-Control": "no-store"})
    return _over(checkout)


@post(
    "/webhooks/sandbox",
    tags=["operation"],
    summary="Events of the sandbox",
    operation_class=body_of("An event", **{"application/json": Schema(type=OpenAPIType.OBJECT)}),
    status_code=200,
    opt={"api_calls": None},
    responses={
        200: ResponseSpec(None, description="Stored, or stored before", generate_examples=False),
        **documented(
            _400="The request cannot be read",
            _401="The signature is wrong or older than five minutes",
            _404="There is no sandbox",
            _413="The body is too long",
            _422="The body is not an event",
            _503="The database is unavailable: send it again",
        ),
    },
)
async def receive(request: Request[Any, Any, Any], state: State) -> Response[None]:
    """Development only. The header `Sandbox-Signature` is `t=<seconds>,v1=<HMAC-SHA-256 of "t.body" in hex>`.
    Idempotent.
    """
    signature = request.headers.get("sandbox-signature", "")
    await events.receive(state.database, _rail(state), await request.body(), signature)
    return Response(None, status_code=200)


def _rail(state: State) -> Sandbox:
    try:
        return sandbox_of(state.database, state.authentication.settings)
    except NoProvider:
        raise NotFound("There is no sandbox outside of development") from None


async def _find(state: State, session: str) -> tuple[Sandbox, Checkout]:
    rail = _rail(state)
    checkout = await checkouts.of_session(state.database, session)
    if checkout is None or (checkout.status == "OPEN" and checkout.expires_at <= state.database.clock.now()):
        raise NotFound("There is no such checkout, or it has expired: begin again")
    return rail, checkout


async def _form(state: State, session: str, checkout: Checkout, *, error: str = "") -> Response[str]:
    quote, terms = await checkouts.quote(state.database, checkout), checkout.terms
    due = Money(quote.due_minor if quote else 0, terms.currency)
    regular = f"{Money(terms.price_minor, terms.currency)} a {terms.interval.lower()}"
    text = f"You pay {due} now for {terms.plan_name}, regularly {regular}."
    if checkout.kind == "CARD":
        text = f"The card pays for {terms.plan_name}, regularly {regular}. An unpaid invoice is charged to it at once."
        if not checkout.makes_default:
            text = "The card is saved. It is charged once you make it the default."
    elif not quote:
        text = f"{terms.plan_name} is free for {checkout.trial_days} days, then {regular}."
    found = page(
        "checkout.html",
        _title(checkout),
        status=422 if error else 200,
        text=text,
        error=error,
        action=f"/sandbox/checkout/{session}",
        button="Save the card" if checkout.kind == "CARD" else f"Pay {due}" if due.minor else "Subscribe",
        return_url=checkout.return_url,
        cards=CARDS.values(),
    )
    # The form's answer leads to the return address, and browsers apply the policy of forms to it, too.
    parts = urlsplit(checkout.return_url)
    policy = found.headers["Content-Security-Policy"]
    found.headers["Content-Security-Policy"] = policy.replace(
        "form-action 'self'", f"form-action 'self' {parts.scheme}://{parts.netloc}"
    )
    return found


def _title(checkout: Checkout) -> str:
    return "Add a card" if checkout.kind == "CARD" else f"Subscribe to {checkout.terms.plan_name}"


def _over(checkout: Checkout) -> Response[str]:
    """A checkout that takes no card any more."""
    text = {
        "PAID": "The card is saved." if checkout.kind == "CARD" else f"{checkout.terms.plan_name} is paid.",
        "PROCESSING": "The payment is under way. You can close this page.",
        "EXPIRED": "The checkout has expired: begin again.",
    }.get(checkout.status, f"{checkout.problem}.")
    return page("over.html", _title(checkout), text=text, return_url=checkout.return_url)


routes = (ask_card, take_card, receive)
