"""Stripe as a rail, over its official library, which only this module and `stripe_errors` import.

Card data never reaches Ximler: a hosted page (Checkout in setup mode) saves a card, which is charged
off-session. Objects of ours are named in the metadata. Every write has an idempotency key of ours, and
nothing rests on it: an intent is confirmed at most once, and a refund is looked for before it is made.
Answers have the form of `VERSION`, also if the account's default is another version.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import msgspec
import stripe
import structlog
from bson import ObjectId

from ximler.billing.provider import (
    Dispute,
    Intent,
    IntentStatus,
    Notice,
    PaymentMethod,
    Refunded,
    Sale,
    Session,
    TheirInvoice,
    TheirSubscription,
)
from ximler.billing.stripe_currencies import from_stripe, to_stripe
from ximler.billing.stripe_errors import HARD, HIDDEN, Declined, KeyRefused, errors
from ximler.core.errors import Invalid, NotFound, Unauthenticated
from ximler.core.money import Money
from ximler.core.settings import Settings

__all__ = ["VERSION", "Stripe", "of_process"]

VERSION = "2026-10-28.endive"
TOLERANCE_S = 300
_TIMEOUT = httpx.Timeout(20.0, connect=5.0)
_SHORTEST_PAGE = timedelta(minutes=31)  # Stripe asks for 30 at least
_NAME = "ximler"  # the key of our metadata: what the object is for

_DISPUTES: dict[str, Any] = {"won": "WON", "warning_closed": "WON", "lost": "LOST", "prevented": "LOST"}
# `unpaid`, `incomplete` and `paused` give no access; Stripe may make them active again.
_STATUSES = {"active": "ACTIVE", "trialing": "ACTIVE", "past_due": "PAST_DUE", "canceled": "CANCELLED"}
_ENDED = ("canceled", "incomplete_expired")
_REFUNDS: dict[str, Any] = {"succeeded": "SUCCEEDED", "failed": "FAILED", "canceled": "FAILED"}
_KINDS = {
    "checkout.session.": "checkout.completed",
    "payment_intent.": "intent.changed",
    "refund.": "refund.changed",
    "charge.refund.": "refund.changed",
    "charge.dispute.": "dispute.changed",
    "customer.subscription.": "subscription.changed",
    "invoice.": "invoice.changed",
}
_NEEDED = ("checkout.session.", "payment_intent.", "refund.", "charge.dispute.")
_REINSTATED = 0.9  # of the money that was taken; part of it is not enough
_NAMED = ("checkout.completed", "intent.changed")  # those without a name of ours are another application's

_log = structlog.get_logger("ximler.billing")
_of_loops: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Stripe]]" = WeakKeyDictionary()


def of_process(settings: Settings) -> "Stripe":
    """The rail of these settings, with the connections of this event loop."""
    known = _of_loops.setdefault(asyncio.get_running_loop(), {})
    identity = (settings.stripe_key, settings.stripe_webhook_secrets, settings.stripe_api)
    if identity not in known:
        key = str(settings.stripe_key)
        if "_test_" in key and not settings.development:
            _log.warning("Stripe's key is a test key: no money moves")
        known[identity] = Stripe(key, settings.stripe_webhook_secrets, api=settings.stripe_api)
    return known[identity]


class Stripe:
    """`webhook_secrets` are those of the webhook's endpoint, newest first:
    an event is accepted under any of them."""

    def __init__(self, key: str, webhook_secrets: tuple[str, ...], *, api: str = "https://api.stripe.com") -> None:
        self._secrets = webhook_secrets
        self._live = "_live_" in key
        self._versions = {VERSION}
        self._http = stripe.HTTPXClient(timeout=_TIMEOUT)
        client = stripe.StripeClient(
            key,
            stripe_version=VERSION,
            base_addresses={"api": api},
            max_network_retries=1,
            http_client=self._http,
        )
        self._api: Any = client.v1

    async def customer(self, user_id: ObjectId) -> str:
        made = await self._write(self._api.customers, _hourly(f"customer:{user_id}"), metadata={_NAME: str(user_id)})
        return str(made["id"])

    async def open_session(
        self, *, key: str, customer_id: str, title: str, return_url: str, expires_at: datetime
    ) -> Session:
        made = await self._write(
            self._api.checkout.sessions,
            _hourly(key),
            mode="setup",
            customer=customer_id,
            payment_method_types=["card"],
            setup_intent_data={"description": title},
            success_url=return_url,
            cancel_url=return_url,
            metadata={_NAME: key},
            expires_at=_expiry(expires_at),
        )
        return _session(made)

    async def session(self, session_id: str) -> Session:
        return _session(await self._read(self._api.checkout.sessions, session_id, "setup_intent.payment_method"))

    async def usable(self, method_id: str) -> bool:
        try:
            return (await self._read(self._api.payment_methods, method_id)).get("customer") is not None
        except NotFound:
            return False

    async def detach(self, method_id: str) -> None:
        if await self.usable(method_id):
            with errors(), contextlib.suppress(NotFound):
                await self._api.payment_methods.detach_async(method_id, options=_once())

    async def forget_customer(self, customer_id: str) -> None:
        with contextlib.suppress(NotFound), errors():
            await self._api.customers.delete_async(customer_id, options=_once())

    async def create_intent(self, *, customer_id: str, amount_minor: int, currency: str, reference: str) -> Intent:
        made = await self._write(
            self._api.payment_intents,
            _hourly(reference),
            amount=to_stripe(amount_minor, currency),
            currency=currency.lower(),
            customer=customer_id,
            payment_method_types=["card"],
            metadata={_NAME: reference},
        )
        return _intent(made)

    async def confirm(self, intent_id: str, method_id: str) -> Intent:
        options = {"idempotency_key": _hourly(f"{intent_id}:{method_id}")}
        params = {"payment_method": method_id, "off_session": True}
        refused = None
        try:
            with errors():
                await self._api.payment_intents.confirm_async(intent_id, params=params, options=options)
        except Declined:
            pass  # the intent has the reason
        except (Invalid, NotFound) as problem:
            refused = problem
        intent = await self.intent(intent_id)
        if refused is None or intent.status != "CREATED":
            return intent
        _log.warning("Stripe refused to charge a card", intent=intent_id, reason=refused.message)
        return Intent(
            id=intent.id,
            status="FAILED",
            reference=intent.reference,
            amount_minor=intent.amount_minor,
            currency=intent.currency,
            failure="card_not_usable",
            hard=True,
        )

    async def intent(self, intent_id: str) -> Intent:
        return _intent(await self._read(self._api.payment_intents, intent_id, "latest_charge"))

    async def refund(self, *, key: str, intent_id: str, amount_minor: int) -> Refunded:
        """Looks for the refund first: Stripe forgets idempotency keys after a day."""
        async for each in self._all(self._api.refunds, payment_intent=intent_id):
            if _reference(each) == key:
                return _refunded(each)
        currency = (await self.intent(intent_id)).currency
        made = await self._write(
            self._api.refunds,
            f"ximler:{key}",
            payment_intent=intent_id,
            amount=to_stripe(amount_minor, currency),
            metadata={_NAME: key},
        )
        return _refunded(made)

    async def refund_state(self, refund_id: str) -> Refunded:
        return _refunded(await self._read(self._api.refunds, refund_id))

    async def dispute(self, dispute_id: str) -> Dispute:
        """An inquiry counts as an open dispute, and a lost dispute with reinstated money as won."""
        found = await self._read(self._api.disputes, dispute_id, "payment_intent")
        intent = found.get("payment_intent")
        moves = [each["amount"] for each in found.get("balance_transactions") or ()]
        return Dispute(
            id=found["id"],
            reference=_reference(intent) if isinstance(intent, dict) else "",
            status="WON" if _reinstated(moves) else _DISPUTES.get(found["status"], "OPEN"),
            amount_minor=_amount(found),
        )

    async def open_sale(self, sale: Sale) -> Session:
        params: dict[str, Any] = {
            "mode": "subscription",
            "customer": sale.customer_id,
            "line_items": [{"price": sale.price_id, "quantity": 1}],
            "subscription_data": {"metadata": {_NAME: sale.key}},
            "success_url": sale.return_url,
            "cancel_url": sale.return_url,
            "metadata": {_NAME: sale.key},
            "expires_at": _expiry(sale.expires_at),
        }
        if sale.trial_days:
            params["subscription_data"]["trial_period_days"] = sale.trial_days
        if sale.code is not None:
            params["discounts"] = [{"coupon": await self._coupon(sale)}]
        return _session(await self._write(self._api.checkout.sessions, _hourly(sale.key), **params))

    async def _coupon(self, sale: Sale) -> str:
        """Our coupon as one of Stripe's, for this sale only."""
        params: dict[str, Any] = {"name": sale.code, "max_redemptions": 1, "duration": "forever"}
        if sale.once:
            params["duration"] = "once"
        elif sale.months is not None:
            params |= {"duration": "repeating", "duration_in_months": sale.months}
        if sale.percent is not None:
            params["percent_off"] = sale.percent
        else:
            params |= {"amount_off": to_stripe(sale.minor or 0, sale.currency), "currency": sale.currency.lower()}
        return str((await self._write(self._api.coupons, _hourly(f"{sale.key}:coupon"), **params))["id"])

    async def subscription(self, subscription_id: str) -> TheirSubscription:
        found = await self._read(self._api.subscriptions, subscription_id)
        state, method_id = _their_subscription(found), _id(found.get("default_payment_method"))
        if state.trial_end is None or method_id is None:
            return state
        with contextlib.suppress(NotFound):
            method = _method(await self._read(self._api.payment_methods, method_id))
            return msgspec.structs.replace(state, fingerprint=method.fingerprint)
        return state

    async def invoice(self, invoice_id: str) -> TheirInvoice:
        return _their_invoice(await self._read(self._api.invoices, invoice_id, "payments"))

    async def end_subscription(self, subscription_id: str, *, now: bool) -> None:
        if not now:
            await self._update(subscription_id, cancel_at_period_end=True)
        elif (await self._read(self._api.subscriptions, subscription_id))["status"] not in _ENDED:
            with errors():
                await self._api.subscriptions.cancel_async(subscription_id, options=_once())

    async def resume_subscription(self, subscription_id: str) -> None:
        await self._update(subscription_id, cancel_at_period_end=False)

    async def change_subscription(self, subscription_id: str, price_id: str) -> None:
        await self._update(
            subscription_id,
            items=[await self._item(subscription_id, price_id)],
            proration_behavior="always_invoice",
            payment_behavior="error_if_incomplete",
        )

    async def preview_change(self, subscription_id: str, price_id: str) -> Money:
        details = {
            "items": [await self._item(subscription_id, price_id)],
            "proration_behavior": "always_invoice",
        }
        params = {"subscription": subscription_id, "subscription_details": details}
        with errors():
            found = _plain(await self._api.invoices.create_preview_async(params=params, options=_once()))
        currency = found["currency"].upper()
        return Money(from_stripe(found["amount_due"], currency), currency)

    async def misconfigured(self, url: str) -> list[str]:
        try:
            found = [each async for each in self._all(self._api.webhook_endpoints)]
        except KeyRefused:
            return ["the webhook's endpoint cannot be checked: allow the key to read Webhook Endpoints"]
        ours = next((each for each in found if each["url"] == url and each["status"] == "enabled"), None)
        if ours is None:
            return [f"no endpoint at Stripe sends events to {url}"]
        problems = []
        if ours.get("api_version") not in (None, VERSION):
            problems.append(f"the webhook's endpoint has the API version {ours['api_version']}, not {VERSION}")
        listened = {str(each).rpartition(".")[0] + "." for each in ours["enabled_events"]}
        missing = [each for each in _NEEDED if each not in listened and "*" not in ours["enabled_events"]]
        if missing:
            problems.append(f"the webhook's endpoint sends no events {', '.join(f'{each}*' for each in missing)}")
        return problems

    def verify(self, body: bytes, signature: str) -> Notice | None:
        self._check_signature(body, signature)
        try:
            event = msgspec.json.decode(body, type=_Event)
        except (msgspec.MsgspecError, RecursionError):
            raise Invalid("The body is not an event") from None
        if event.livemode != self._live:
            _log.warning("an event of Stripe's other mode was ignored", type=event.type, live=event.livemode)
            return None
        if event.api_version and event.api_version not in self._versions:
            self._versions.add(event.api_version)
            _log.warning("the webhook's endpoint has another API version", expected=VERSION, version=event.api_version)
        found = event.data.object
        kind = next((kind for prefix, kind in _KINDS.items() if event.type.startswith(prefix)), None)
        reference = (found.metadata or {}).get(_NAME)
        if kind is None or (reference is None and kind in _NAMED):
            return None
        return Notice(id=event.id, kind=kind, object_id=found.id, reference=reference)

    async def advance(self) -> None:
        """Nothing is due: Stripe's payments settle by themselves."""

    async def close(self) -> None:
        """Close the connections. A process that ends needs not."""
        await self._http.close_async()

    def _check_signature(self, body: bytes, signature: str) -> None:
        for secret in self._secrets if signature.isascii() else ():
            with contextlib.suppress(stripe.SignatureVerificationError, UnicodeDecodeError):
                stripe.WebhookSignature.verify_header(body, signature, secret, TOLERANCE_S)
                return
        raise Unauthenticated("The signature is wrong, or older than five minutes")

    async def _item(self, subscription_id: str, price_id: str) -> dict[str, str]:
        """The subscription's only item, at another price."""
        found = await self._read(self._api.subscriptions, subscription_id)
        return {"id": _items(found)[0]["id"], "price": price_id}

    async def _update(self, subscription_id: str, **params: Any) -> None:
        with errors():
            await self._api.subscriptions.update_async(subscription_id, params=params, options=_once())

    async def _read(self, service: Any, object_id: str, *expand: str) -> dict[str, Any]:
        with errors():
            return _plain(await service.retrieve_async(object_id, params={"expand": list(expand)} if expand else {}))

    async def _write(self, service: Any, key: str, **params: Any) -> dict[str, Any]:
        with errors():
            return _plain(await service.create_async(params=params, options={"idempotency_key": key}))

    async def _all(self, service: Any, **params: Any) -> AsyncIterator[dict[str, Any]]:
        with errors():
            found = await service.list_async(params={"limit": 100, **params})
            async for each in found.auto_paging_iter():
                yield _plain(each)


class _Object(msgspec.Struct):
    id: str
    metadata: dict[str, str] | None = None


class _Data(msgspec.Struct):
    object: _Object


class _Event(msgspec.Struct):
    """The part of an event that is read. The object's state is fetched."""

    id: str
    type: str
    data: _Data
    livemode: bool = False
    api_version: str | None = None


def _hourly(name: str) -> str:
    """An idempotency key for a write that is harmless twice. Stripe repeats its answer to a key, also an
    error of its own: under a key for ever, one bad minute would fail the write for a day.
    """
    return f"ximler:{name}:{int(time.time()) // 3600}"


def _once() -> dict[str, str]:
    """For a write that sets a state, and may be repeated: the key serves the library's own retry."""
    return {"idempotency_key": f"ximler:{secrets.token_hex(16)}"}


def _plain(found: Any) -> dict[str, Any]:
    values: dict[str, Any] = found.to_dict()
    return values


def _reference(found: dict[str, Any]) -> str:
    return str((found.get("metadata") or {}).get(_NAME, ""))


def _reinstated(moves: Sequence[int]) -> bool:
    """Whether the disputed money came back. The moves are in the account's settlement currency, so the
    returned amount differs from the one that was taken if the exchange rate has changed.
    """
    taken, back = -sum(each for each in moves if each < 0), sum(each for each in moves if each > 0)
    return back > 0 and back >= _REINSTATED * taken


def _amount(found: dict[str, Any]) -> int:
    return from_stripe(found["amount"], found["currency"].upper())


def _expiry(wanted: datetime) -> int:
    return int(max(wanted, datetime.now(UTC) + _SHORTEST_PAGE).timestamp())


def _session(found: dict[str, Any]) -> Session:
    setup, method, complete = found.get("setup_intent"), None, found.get("status") == "complete"
    if complete and isinstance(setup, dict) and setup.get("status") == "succeeded":
        method = _method(setup["payment_method"])
    return Session(
        id=found["id"],
        url=found.get("url") or "",
        customer_id=str(_id(found["customer"])),
        method=method,
        subscription_id=_id(found.get("subscription")) if complete else None,
    )


def _method(found: dict[str, Any]) -> PaymentMethod:
    card = found.get("card") or {}
    label = f"{str(card.get('brand') or 'card').title()} {card.get('last4', '')}".strip()
    expires = f"{card['exp_year']}-{int(card['exp_month']):02}" if card.get("exp_year") else None
    fingerprint = card.get("fingerprint") or found["id"]
    return PaymentMethod(id=found["id"], label=label, fingerprint=fingerprint, expires=expires)


def _intent(found: dict[str, Any]) -> Intent:
    failure, hard, status = None, False, _status(found)
    if status == "FAILED":
        failure, hard = _failure(found)
    currency, charge = found["currency"].upper(), found.get("latest_charge")
    refunded = charge.get("amount_refunded", 0) if isinstance(charge, dict) else 0
    return Intent(
        id=found["id"],
        status=status,
        reference=_reference(found),
        amount_minor=_amount(found),
        currency=currency,
        refunded_minor=from_stripe(refunded, currency),
        failure=failure,
        hard=hard,
    )


def _status(found: dict[str, Any]) -> IntentStatus:
    match found["status"]:
        case "succeeded":
            return "SUCCEEDED"
        case "processing" | "requires_capture":
            return "PROCESSING"
        case "canceled" | "requires_action":
            return "FAILED"
        case _:
            return "FAILED" if found.get("last_payment_error") else "CREATED"


def _failure(found: dict[str, Any]) -> tuple[str, bool]:
    """The reason that is shown, and whether the card will never work."""
    if found["status"] == "canceled":
        return "cancelled", False
    error = found.get("last_payment_error") or {"code": "authentication_required"}
    code = str(error.get("decline_code") or error.get("code") or "card_declined")
    if code in ("payment_intent_authentication_failure", "setup_intent_authentication_failure"):
        code = "authentication_required"
    hard = code in HARD or error.get("advice_code") == "do_not_try_again"
    return "card_declined" if code in HIDDEN else code, hard


def _refunded(found: dict[str, Any]) -> Refunded:
    status = _REFUNDS.get(found["status"], "PENDING")
    failure = str(found.get("failure_reason") or "failed").replace("_", " ") if status == "FAILED" else None
    return Refunded(
        id=found["id"],
        reference=_reference(found),
        status=status,
        failure=failure,
        intent_id=_id(found.get("payment_intent")),
    )


def _their_subscription(found: dict[str, Any]) -> TheirSubscription:
    item = _items(found)[0]
    price = item.get("price") or item.get("plan") or {}
    unit = price.get("unit_amount", price.get("amount"))
    currency = str(price.get("currency") or found["currency"]).upper()
    period = item if item.get("current_period_end") else found
    ended, cancel_at = found.get("ended_at"), found.get("cancel_at")
    cancels = bool(found.get("cancel_at_period_end") or cancel_at)
    end = ended or cancel_at or (period["current_period_end"] if cancels else None)
    status: Any = _STATUSES.get(found["status"], "EXPIRED")
    if status == "CANCELLED" and (found.get("cancellation_details") or {}).get("reason") == "payment_failed":
        status = "EXPIRED"
    return TheirSubscription(
        id=found["id"],
        customer_id=str(_id(found["customer"])),
        status=status,
        price_id=price.get("id"),
        price_minor=None if unit is None else from_stripe(unit, currency) * int(item.get("quantity") or 1),
        currency=currency,
        start=_moment(found.get("start_date") or found["created"]),
        end=_moment(end) if end else None,
        cancels=cancels or ended is not None,
        period_start=_moment(period["current_period_start"]),
        period_end=_moment(period["current_period_end"]),
        trial_end=_moment(found["trial_end"]) if found.get("trial_end") else None,
        invoice_id=_id(found.get("latest_invoice")),
    )


def _their_invoice(found: dict[str, Any]) -> TheirInvoice:
    parent = (found.get("parent") or {}).get("subscription_details") or {}
    payments = (found.get("payments") or {}).get("data") or []
    intents = [_id((each.get("payment") or {}).get("payment_intent")) for each in payments]
    currency, paid = found["currency"].upper(), found["status"] == "paid"
    paid_at = (found.get("status_transitions") or {}).get("paid_at") if paid else None
    status: Any = {"draft": None, "paid": "PAID", "void": "FAILED", "uncollectible": "FAILED"}.get(
        found["status"], "FAILED" if found.get("attempted") else "PENDING"
    )
    return TheirInvoice(
        id=found["id"],
        subscription_id=_id(parent.get("subscription")),
        status=status,
        amount_minor=from_stripe(found["amount_paid"] if paid else found["amount_due"], currency),
        currency=currency,
        description=found.get("description"),
        intent_id=next((each for each in intents if each), None) or _id(found.get("payment_intent")),
        url=found.get("hosted_invoice_url"),
        paid_at=_moment(paid_at) if paid_at else None,
    )


def _items(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Raises Invalid for a subscription of several prices, which no plan of ours is."""
    items: list[dict[str, Any]] = found["items"]["data"]
    if len(items) != 1:
        raise Invalid(f"The subscription {found['id']} has {len(items)} prices at Stripe: it cannot be a plan")
    return items


def _id(found: Any) -> str | None:
    """Of an object that may have been expanded."""
    return found.get("id") if isinstance(found, dict) else found


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
