"""localstripe on loopback as Stripe, with the parts that it lacks:
hosted pages, disputes, idempotency keys, and faults.

It signs and sends its events itself; `Peer.events` has them.
"""

import asyncio
import re
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal

from aiohttp import web

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # its handlers are no coroutines
    from localstripe import resources, server, webhooks

__all__ = ["SECRET", "Delivery", "Fault", "Peer", "start"]

SECRET = "whsec_of_the_endpoint"
# "lost": the request is carried out, and its answer does not arrive;
# "500" is the answer of one that is carried out.
Fault = Literal["down", "lost", "500", "rate", "key", "invalid", "card"] | None
Delivery = tuple[bytes, str]


class Peer:
    """`requests` has method and path of each; `fault` and `hold` take them."""

    def __init__(self) -> None:
        self.url = ""
        self._sending: list[asyncio.Future[Any]] = []
        self._translated: list[tuple[re.Pattern[str], Callable[[web.Request], Awaitable[web.Response]]]] = [
            (re.compile(r"POST /v1/payment_intents/\w+/confirm"), self._confirm),
            (re.compile(r"GET /v1/invoices/\w+"), self._invoice),
            (re.compile(r"POST /v1/subscriptions/\w+"), self._change_subscription),
            (re.compile(r"POST /v1/invoices/create_preview"), self._preview),
            (re.compile(r"POST /v1/coupons"), self._coupon),
        ]
        self.forget()

    def forget(self) -> None:
        """Everything, between two tests."""
        resources.store.clear()
        self._received: list[Delivery] = []
        self.sessions: dict[str, dict[str, Any]] = {}
        self.endpoints: list[dict[str, Any]] = []
        self.disputes: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, tuple[int, bytes]] = {}
        self.requests: list[str] = []
        self.declines = False  # changes of subscriptions
        self.fault: Callable[[str], Fault] = lambda _: None
        self.hold: Callable[[str], Awaitable[object]] | None = None  # awaited before an answer leaves

    async def events(self) -> list[Delivery]:
        """Body and signature of the events since the last call,
        without those that Ximler does not listen to."""
        while self._sending:
            await self._sending.pop()
        taken, self._received = self._received, []
        return taken

    async def enter_card(self, session_id: str, number: str) -> None:
        """The customer's part on the hosted page."""
        session = self.sessions[session_id]
        card = {"number": number, "exp_month": "12", "exp_year": "2030", "cvc": "123"}
        method = resources.PaymentMethod(type="card", card=card)
        method.customer = session["customer"]
        setup = {"id": "seti_1", "object": "setup_intent", "status": "succeeded", "payment_method": method._export()}
        session |= {"status": "complete", "url": None, "setup_intent": setup}
        self.send("checkout.session.completed", session)

    def pay(self, session_id: str) -> Any:
        """The customer subscribes on the hosted page, with a card that succeeds."""
        session = self.sessions[session_id]
        (item,) = session["sells"]["line_items"]
        made = self._subscription(session["customer"], item["price"])
        session |= {"status": "complete", "url": None, "subscription": made.id}
        self.send("checkout.session.completed", session)
        return made

    def send(self, kind: str, found: dict[str, Any]) -> None:
        """An event that localstripe does not send."""
        webhooks.schedule_webhook(resources.Event(kind, _Exported(found)))

    def subscribe(self, price_id: str, amount: int) -> Any:
        """A customer with a card subscribes at Stripe, by another application.
        Returns localstripe's object."""
        self.offer(price_id, amount)
        return self._subscription(resources.Customer().id, price_id)

    def _subscription(self, customer_id: str, price_id: str) -> Any:
        customer = resources.Customer._api_retrieve(customer_id)
        card = {"number": "4242424242424242", "exp_month": "12", "exp_year": "2030", "cvc": "123"}
        method = resources.PaymentMethod(type="card", card=card)
        method.customer = customer.id
        customer.invoice_settings["default_payment_method"] = method.id
        return resources.Subscription(customer=customer.id, items=[{"plan": price_id}])

    def offer(self, price_id: str, amount: int) -> None:
        resources.Plan(id=price_id, amount=amount, currency="usd", interval="month", product={"name": price_id})

    def money(self) -> dict[str, int]:
        """By our name: captured less refunded, in Stripe's units."""
        found = [each for key, each in resources.store.items() if key.startswith("payment_intent:")]
        return {
            each.metadata["ximler"]: each.amount - each.latest_charge.amount_refunded
            for each in found
            if each.status == "succeeded"
        }

    def refund(self, intent_id: str, amount: int) -> str:
        """Somebody refunds in Stripe's dashboard."""
        return str(resources.Refund(payment_intent=intent_id, amount=amount).id)

    def ids(self, kind: str) -> list[str]:
        return [each.id for key, each in resources.store.items() if key.startswith(f"{kind}:")]

    @web.middleware
    async def answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        name = f"{request.method} {request.path}"
        if not request.path.startswith("/v1/"):
            return await handler(request)  # type: ignore[no-any-return]
        self.requests.append(name)
        assert request.headers["Stripe-Version"] == "2026-10-28.endive"
        key = request.headers.get("Idempotency-Key")
        assert key or request.method == "GET"
        fault = self.fault(name)
        if fault == "down":
            return _hang_up(request)
        if fault == "rate":
            return _json({"error": {"message": "Too many requests"}}, 429)
        if fault == "invalid":
            text = "Received unknown parameter: sauce"
            return _json({"error": {"type": "invalid_request_error", "param": "sauce", "message": text}}, 400)
        if fault == "card":
            return _json(
                {"error": {"type": "card_error", "code": "new_code", "message": "Your card is too thin."}}, 402
            )
        if fault == "key":
            return _json({"error": {"message": "Invalid API Key provided"}}, 401)
        if key in self.keys:
            status, body = self.keys[key]
            if fault == "lost":
                return _hang_up(request)
            return web.Response(body=body, status=status, content_type="application/json")
        own = next((own for pattern, own in self._translated if pattern.fullmatch(name)), None)
        given = await (own(request) if own else handler(request))
        if fault == "500":
            given = _json({"error": {"message": "An error of Stripe's"}}, 500)
        if key and given.status != 409:
            self.keys[key] = (given.status, given.body)
        if self.hold is not None:
            await self.hold(name)
        return _hang_up(request) if fault == "lost" else given  # type: ignore[no-any-return]

    async def _confirm(self, request: web.Request) -> web.Response:
        """localstripe confirms with the method that the intent has already, and knows no `off_session`."""
        data = await server.get_post_data(request)
        assert data.pop("off_session") == "true"
        method = data.pop("payment_method")
        try:
            found = resources.PaymentIntent._api_retrieve(request.path.split("/")[3])
            if found.status == "requires_payment_method" and found.latest_charge is None:
                resources.PaymentMethod._api_retrieve(method)
                found.payment_method = method
            return _json(resources.PaymentIntent._api_confirm(found.id, **data)._export())
        except server.UserError as error:
            return error.to_response()  # type: ignore[no-any-return]

    async def _invoice(self, request: web.Request) -> web.Response:
        """localstripe has no `payments` to expand: an invoice has one intent."""
        found = resources.Invoice._api_retrieve(request.path.split("/")[3])
        payments = {"data": [{"payment": {"type": "payment_intent", "payment_intent": found.payment_intent}}]}
        exported = found._export()
        del exported["payment_intent"], exported["charge"], exported["subscription"]  # as Stripe since 2025
        return _json({**exported, "payments": payments, "hosted_invoice_url": f"https://invoice.stripe.com/{found.id}"})

    async def _change_subscription(self, request: web.Request) -> web.Response:
        """localstripe has plans for prices, charges no difference at once, and sends no event."""
        data = await server.get_post_data(request)
        found = resources.Subscription._api_retrieve(request.path.split("/")[3])
        if "items" in data:
            assert data.pop("payment_behavior") == "error_if_incomplete"
            assert data.pop("proration_behavior") == "always_invoice"
            if self.declines:
                return _json({"error": {"code": "card_declined", "message": "Your card was declined."}}, 402)
            data["items"] = [{"id": each["id"], "plan": each["price"]} for each in data["items"]]
        found._update(**data)
        self.send("customer.subscription.updated", found._export())
        return _json(found._export())

    async def _coupon(self, request: web.Request) -> web.Response:
        data = await server.get_post_data(request)
        assert (data.pop("max_redemptions"), len(data.pop("name"))) == ("1", 9)
        return _json(resources.Coupon(id=f"co_{len(self.keys)}", **data)._export())

    async def _preview(self, request: web.Request) -> web.Response:
        data = await server.get_post_data(request)
        (item,) = data["subscription_details"]["items"]
        found = resources.Subscription._api_retrieve(data["subscription"])
        new, old = resources.Plan._api_retrieve(item["price"]), found.plan
        return _json({"object": "invoice", "currency": new.currency, "amount_due": new.amount - old.amount})

    async def _open_session(self, request: web.Request) -> web.Response:
        data = await server.get_post_data(request)
        if data["mode"] == "setup":
            assert data["payment_method_types"] == ["card"]
        session_id = f"cs_test_{len(self.sessions)}"
        self.sessions[session_id] = {
            "id": session_id,
            "object": "checkout.session",
            "status": "open",
            "url": f"https://checkout.stripe.com/c/pay/{session_id}",
            "setup_intent": None,
            "customer": data["customer"],
            "metadata": data["metadata"],
            "expires_at": int(data["expires_at"]),
            "sells": {name: data.get(name) for name in ("line_items", "subscription_data", "discounts")},
        }
        return _json(self.sessions[session_id])

    async def _session(self, request: web.Request) -> web.Response:
        return _found(self.sessions, request)

    async def _endpoints(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": self.endpoints, "has_more": False, "url": "/v1/webhook_endpoints"})

    async def _dispute(self, request: web.Request) -> web.Response:
        return _found(self.disputes, request)

    async def _take(self, request: web.Request) -> web.Response:
        self._received.append((await request.read(), request.headers["Stripe-Signature"]))
        return web.Response()

    def _begin(self, sending: Coroutine[Any, Any, Any]) -> None:
        self._sending.append(asyncio.ensure_future(sending))


class _Exported:
    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    def _export(self) -> dict[str, Any]:
        return dict(self._found)


class _Promptly:
    """asyncio as localstripe's module of webhooks sees it: it would wait for a second before each."""

    def __init__(self, peer: Peer) -> None:
        self.ensure_future = peer._begin

    @staticmethod
    async def sleep(_: float) -> None:
        await asyncio.sleep(0)


@asynccontextmanager
async def start() -> AsyncIterator[Peer]:
    """Serve on a free port of this machine."""
    peer, app = Peer(), server.app
    resources.Store.dump_to_disk = lambda _: None
    webhooks.asyncio = _Promptly(peer)
    app.middlewares.insert(0, peer.answer)
    app.router.add_post("/v1/checkout/sessions", peer._open_session)
    app.router.add_get("/v1/checkout/sessions/{id}", peer._session)
    app.router.add_get("/v1/disputes/{id}", peer._dispute)
    app.router.add_get("/v1/webhook_endpoints", peer._endpoints)
    app.router.add_post("/_config/received", peer._take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    peer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    webhooks.register_webhook("ximler", f"{peer.url}/_config/received", SECRET, None)
    yield peer
    await peer.events()
    await runner.cleanup()


def _json(found: object, status: int = 200) -> web.Response:
    return web.json_response(found, status=status)


def _found(store: dict[str, dict[str, Any]], request: web.Request) -> web.Response:
    found = store.get(request.match_info["id"])
    if found is None:
        return _json({"error": {"code": "resource_missing", "message": "No such object"}}, 404)
    return _json(found)


def _hang_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
