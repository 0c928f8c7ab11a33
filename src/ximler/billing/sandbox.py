"""The sandbox: the payment provider of development. Owns `sandboxobjects`.

It behaves as Stripe does, offline: a hosted page that saves a payment method, intents that are created and
confirmed, refunds, and signed events to the same inbox. Its state is in the database, so that it survives
restarts and serves several processes. It takes the numbers of `CARDS` and no other. `fault` lets tests have
it fail in every way that a provider does.
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from itertools import starmap
from typing import Any, Literal

import msgspec
from bson import ObjectId

from ximler.billing.provider import Dispute, Intent, Notice, PaymentMethod, ProviderUnavailable, Refunded, Session
from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid, NotFound, Unauthenticated
from ximler.core.together import Together
from ximler.database import Database
from ximler.database.reading import Filter
from ximler.database.updates import Update
from ximler.schema.sandbox_object import SANDBOX_OBJECTS, SandboxObject

__all__ = ["CARDS", "TOLERANCE", "Card", "Fault", "Sandbox", "sign"]

TOLERANCE = timedelta(minutes=5)
_LATER = timedelta(minutes=10)
_EXPIRES = "2034-12"
_TOGETHER = 500  # calls at the same time
_STORED = dict(zip(SandboxObject.__struct_fields__, SandboxObject.__struct_encode_fields__, strict=True))

# Faults that a test injects into a call (`confirm`: "down") and to its answer (`confirm:answer`: "after").
Fault = Literal["down", "after"] | None
Deliver = Callable[[bytes, str], Awaitable[object]]
_Confirmed = tuple[bool, SandboxObject | None]  # whether it has changed, and the intent afterwards


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A test number and the outcome of its payments: immediately, and (`later`) after ten minutes.

    `refunds`: the outcome of its refunds after ten minutes. None: they succeed immediately.
    """

    number: str
    meaning: str
    failure: str | None = None
    hard: bool = False
    later: Literal["SUCCEEDED", "FAILED", "never"] | None = None
    refunds: Literal["SUCCEEDED", "FAILED"] | None = None

    def method(self, customer_id: str | None) -> PaymentMethod:
        """The card as a customer's payment method: entering it again is the same one."""
        return PaymentMethod(
            id=f"pm_{self.number}_{(customer_id or '').removeprefix('cus_')}",
            label=f"Test card {self.number[-4:]}",
            fingerprint=hashlib.sha256(self.number.encode()).hexdigest()[:16],
            expires=_EXPIRES,
        )


CARDS = {
    card.number: card
    for card in (
        Card(number="4242424242424242", meaning="succeeds"),
        Card(number="5555555555554444", meaning="succeeds, and is another card"),
        Card(number="4000000000000002", meaning="is declined", failure="card_declined"),
        Card(number="4000000000009995", meaning="is declined: insufficient funds", failure="insufficient_funds"),
        Card(number="4000000000009987", meaning="is declined for good: lost card", failure="lost_card", hard=True),
        Card(number="4000002760003184", meaning="needs authentication", failure="authentication_required"),
        Card(number="4000000000000077", meaning="succeeds ten minutes later", later="SUCCEEDED"),
        Card(number="4000000000005126", meaning="fails ten minutes later", failure="debit_refused", later="FAILED"),
        Card(number="4000000000000259", meaning="stays pending", later="never"),
        Card(number="4000000000007726", meaning="succeeds; refunds take ten minutes", refunds="SUCCEEDED"),
        Card(number="4000000000003220", meaning="succeeds; refunds fail after ten minutes", refunds="FAILED"),
    )
}


class Sandbox:
    """`deliver(body, signature)` takes the events:
    the inbox, or a test that delays, doubles and reorders them."""

    def __init__(self, database: Database, *, secret: bytes, base_url: str, deliver: Deliver) -> None:
        self._database = database
        self._secret = secret
        self._base_url = base_url
        self.deliver = deliver
        self.fault: Callable[[str], Fault] = lambda _: None
        self._inserting: Together[SandboxObject, bool] = Together(self._insert_each, most=_TOGETHER)
        self._reading: Together[str, SandboxObject | None] = Together(self._read_each, most=_TOGETHER)
        self._confirming: Together[tuple[str, dict[str, Any]], _Confirmed] = Together(
            self._confirm_each, most=_TOGETHER
        )

    async def customer(self, user_id: ObjectId) -> str:
        customer_id = f"cus_{user_id}"
        await self._insert("customer", SandboxObject(id=customer_id, kind="customer"))
        return customer_id

    async def open_session(
        self, *, key: str, customer_id: str, title: str, return_url: str, expires_at: datetime
    ) -> Session:
        session_id = f"cs_{key}"
        await self._insert(
            "open_session",
            SandboxObject(
                id=session_id,
                kind="session",
                customer_id=customer_id,
                title=title,
                return_url=return_url,
                expires_at=expires_at,
            ),
        )
        return Session(id=session_id, url=f"{self._base_url}/sandbox/checkout/{session_id}", customer_id=customer_id)

    async def session(self, session_id: str) -> Session:
        self._may("session")
        found = await self.page(session_id)
        method = _card(found.method_id).method(found.customer_id) if found.method_id else None
        url = f"{self._base_url}/sandbox/checkout/{session_id}"
        return Session(id=session_id, url=url, customer_id=str(found.customer_id), method=method)

    async def page(self, session_id: str) -> SandboxObject:
        """The content of the hosted page. Raises NotFound."""
        found = await self._database[SANDBOX_OBJECTS].find_one({"_id": session_id, "kind": "session"})
        if found is None:
            raise NotFound("There is no such checkout")
        return found

    async def enter_card(self, session_id: str, number: str) -> SandboxObject:
        """The customer's part on the hosted page.

        Raises NotFound, also for a checkout that has expired, and Invalid for anything but a test number.
        """
        card = CARDS.get("".join(number.split()))
        if card is None:
            raise Invalid.field("card", "is not one of the test numbers")
        found = await self._database[SANDBOX_OBJECTS].find_and_patch(
            {"_id": session_id, "kind": "session", "expiresAt": {"$gt": self._database.clock.now()}},
            {"$set": {"methodId": f"pm_{card.number}", "status": "COMPLETE"}},
        )
        if found is None:
            raise NotFound("There is no such checkout, or it has expired")
        await self._database[SANDBOX_OBJECTS].delete({"_id": card.method(found.customer_id).id, "kind": "detached"})
        await self._emit("checkout.completed", session_id)
        return found

    async def usable(self, method_id: str) -> bool:
        detached = await self._database[SANDBOX_OBJECTS].find_one({"_id": method_id, "kind": "detached"})
        return _number(method_id) in CARDS and detached is None

    async def detach(self, method_id: str) -> None:
        await self._insert("detach", SandboxObject(id=method_id, kind="detached"))

    async def forget_customer(self, customer_id: str) -> None:
        self._may("forget_customer")
        await self._database[SANDBOX_OBJECTS].delete({"_id": customer_id, "kind": "customer"})

    async def create_intent(self, *, customer_id: str, amount_minor: int, currency: str, reference: str) -> Intent:
        made = SandboxObject(
            id=f"pi_{secrets.token_hex(12)}",
            kind="intent",
            customer_id=customer_id,
            amount_minor=amount_minor,
            currency=currency,
            reference=reference,
        )
        await self._insert("create_intent", made)
        return _intent(made)

    async def confirm(self, intent_id: str, method_id: str) -> Intent:
        self._may("confirm")
        card = _card(method_id)
        values: dict[str, Any] = {"status": "FAILED" if card.failure else "SUCCEEDED", "method_id": method_id}
        if card.later:
            values["status"] = "PROCESSING"
            if card.later != "never":
                values |= {"outcome": card.later, "due_at": self._database.clock.now() + _LATER}
        if card.failure:
            values |= {"failure": card.failure, "hard": card.hard}
        changed, found = await self._confirming(None, (intent_id, values))
        if found is None:
            raise NotFound(f"No such intent: {intent_id}")
        if changed:
            await self._emit("intent.changed", intent_id, found.reference)
        self._answer("confirm")
        return _intent(found)

    async def intent(self, intent_id: str) -> Intent:
        self._may("intent")
        found = await self._reading(None, intent_id)
        if found is None:
            raise NotFound(f"No such intent: {intent_id}")
        return _intent(found)

    async def refund(self, *, key: str, intent_id: str, amount_minor: int) -> Refunded:
        self._may("refund")
        refund_id = f"re_{key}"

        async def write(transaction: Database) -> bool:
            if await transaction[SANDBOX_OBJECTS].find_one({"_id": refund_id}):
                return False
            where = {"_id": intent_id, "status": "SUCCEEDED"}
            paid = await transaction[SANDBOX_OBJECTS].find_and_patch(where, {"$inc": {"refundedMinor": amount_minor}})
            if paid is None or paid.refunded_minor > paid.amount_minor:
                raise Invalid.field("amount", "is more than was paid")
            outcome = _card(str(paid.method_id)).refunds
            refund = SandboxObject(
                id=refund_id,
                kind="refund",
                intent_id=intent_id,
                amount_minor=amount_minor,
                reference=key,
                status="PENDING" if outcome else "SUCCEEDED",
                outcome=outcome,
                due_at=transaction.clock.now() + _LATER if outcome else None,
            )
            await transaction[SANDBOX_OBJECTS].insert(refund)
            return True

        if await self._database.transaction(write):
            await self._emit("refund.changed", refund_id, key)
        self._answer("refund")
        return await self.refund_state(refund_id)

    async def refund_state(self, refund_id: str) -> Refunded:
        self._may("refund_state")
        found = await self._database[SANDBOX_OBJECTS].get(refund_id)
        status: Any = found.status
        failure = "The bank refused it" if status == "FAILED" else None
        return Refunded(id=found.id, reference=str(found.reference), status=status, failure=failure)

    async def open_dispute(self, intent_id: str) -> str:
        """The customer's part at their bank; returns the dispute's id."""
        intent = await self._database[SANDBOX_OBJECTS].get(intent_id)
        dispute = SandboxObject(
            id=f"dp_{secrets.token_hex(12)}",
            kind="dispute",
            intent_id=intent_id,
            amount_minor=intent.amount_minor - intent.refunded_minor,
            reference=intent.reference,
            status="OPEN",
        )
        await self._database[SANDBOX_OBJECTS].insert(dispute)
        await self._emit("dispute.changed", dispute.id)
        return dispute.id

    async def decide_dispute(self, dispute_id: str, status: Literal["WON", "LOST"]) -> None:
        """Decide a dispute as the bank does: `WON` by us, or `LOST`, which returns the money to the customer.
        A lost dispute may be won later."""
        where = {"_id": dispute_id, "status": {"$in": ["OPEN", "LOST"] if status == "WON" else ["OPEN"]}}

        async def write(transaction: Database) -> None:
            stored = transaction[SANDBOX_OBJECTS]
            found = await stored.find_and_patch(where, {"$set": {"status": status}}, before=True)
            if found is None:
                raise NotFound("There is no such open dispute")
            if "LOST" in (status, found.status):
                amount = found.amount_minor if status == "LOST" else -found.amount_minor
                await stored.patch({"_id": found.intent_id}, {"$inc": {"refundedMinor": amount}})

        await self._database.transaction(write)
        await self._emit("dispute.changed", dispute_id)

    async def dispute(self, dispute_id: str) -> Dispute:
        self._may("dispute")
        found = await self._database[SANDBOX_OBJECTS].get(dispute_id)
        status: Any = found.status
        return Dispute(id=found.id, reference=str(found.reference), status=status, amount_minor=found.amount_minor)

    def verify(self, body: bytes, signature: str) -> Notice:
        parts = dict(part.partition("=")[::2] for part in signature.split(","))
        moment = parts.get("t", "")
        if not (moment.isascii() and moment.isdecimal() and len(moment) < 16):
            raise Unauthenticated("The signature is not valid")
        given = parts.get("v1", "").encode(errors="replace")  # text that is not ASCII cannot be compared
        if not hmac.compare_digest(_mac(self._secret, int(moment), body).encode(), given):
            raise Unauthenticated("The signature is not valid")
        age = abs(self._database.clock.now_ms() - int(moment) * 1000)
        if age > TOLERANCE // timedelta(milliseconds=1):
            raise Unauthenticated("The signature is older than five minutes")
        try:
            return msgspec.json.decode(body, type=Notice)
        except msgspec.MsgspecError:
            raise Invalid("The body is not an event") from None

    async def advance(self) -> None:
        due = {"dueAt": {"$lte": self._database.clock.now()}}
        for each in await self._database[SANDBOX_OBJECTS].find(due):
            values = {"status": each.outcome, "dueAt": None}
            where = {"_id": each.id, "status": {"$in": ["PROCESSING", "PENDING"]}}
            if not await self._database[SANDBOX_OBJECTS].patch(where, {"$set": values}):
                continue
            if each.kind == "refund" and each.outcome == "FAILED":
                undone = {"$inc": {"refundedMinor": -each.amount_minor}}
                await self._database[SANDBOX_OBJECTS].patch({"_id": each.intent_id}, undone)
            await self._emit(f"{each.kind}.changed", each.id, each.reference)

    async def due_at(self) -> datetime | None:
        """When `advance` has something to do next."""
        found = await self._database[SANDBOX_OBJECTS].find({"dueAt": {"$gt": EPOCH}}, sort=[("dueAt", 1)], limit=1)
        return found[0].due_at if found else None

    async def _insert(self, verb: str, made: SandboxObject) -> None:
        self._may(verb)
        await self._inserting(None, made)  # if it is not there already
        self._answer(verb)

    async def _insert_each(self, _: None, objects: list[SandboxObject]) -> list[bool]:
        return await self._database[SANDBOX_OBJECTS].insert_each(objects)

    async def _read_each(self, _: None, ids: list[str]) -> list[SandboxObject | None]:
        where = {"_id": ids[0] if len(ids) == 1 else {"$in": ids}}
        found = {each.id: each for each in await self._database[SANDBOX_OBJECTS].find(where)}
        return [found.get(each) for each in ids]

    async def _confirm_each(self, _: None, intents: list[tuple[str, dict[str, Any]]]) -> list[_Confirmed]:
        ids = [intent_id for intent_id, _ in intents]

        def change(intent_id: str, values: dict[str, Any]) -> tuple[Filter, Update]:
            stored = {_STORED[name]: value for name, value in values.items()}
            return {"_id": intent_id, "status": "CREATED"}, {"$set": stored}

        if len(intents) == 1:
            changed = await self._database[SANDBOX_OBJECTS].patch(*change(*intents[0]))
            return [(changed, found) for found in await self._read_each(None, ids)]

        async def write(transaction: Database) -> list[_Confirmed]:
            found = {each.id: each for each in await transaction[SANDBOX_OBJECTS].find({"_id": {"$in": ids}})}
            created = {each.id for each in found.values() if each.status == "CREATED"}
            wanted = {intent_id: values for intent_id, values in reversed(intents) if intent_id in created}
            await transaction[SANDBOX_OBJECTS].patch_each(starmap(change, wanted.items()))
            found |= {each: msgspec.structs.replace(found[each], **values) for each, values in wanted.items()}
            return [(intent_id in created, found.get(intent_id)) for intent_id in ids]

        return await self._database.transaction(write)

    async def _emit(self, kind: str, object_id: str, reference: str | None = None) -> None:
        notice = Notice(id=f"evt_{secrets.token_hex(12)}", kind=kind, object_id=object_id, reference=reference)
        body = msgspec.json.encode(notice)
        await self.deliver(body, sign(self._secret, self._database.clock.now(), body))

    def _may(self, verb: str) -> None:
        if self.fault(verb) == "down":
            raise _no_answer()

    def _answer(self, verb: str) -> None:
        """Called after the work: the answer of a call may be lost."""
        if self.fault(f"{verb}:answer") == "after":
            raise _no_answer()


def _number(method_id: str) -> str:
    return method_id.removeprefix("pm_").partition("_")[0]


def _card(method_id: str) -> Card:
    return CARDS[_number(method_id)]


def _no_answer() -> ProviderUnavailable:
    return ProviderUnavailable("The payment provider does not answer: try again in a moment")


def sign(secret: bytes, moment: datetime, body: bytes) -> str:
    """The signature header of an event sent at a moment: `t=<seconds>,v1=<hex>`."""
    seconds = int(moment.timestamp())
    return f"t={seconds},v1={_mac(secret, seconds, body)}"


def _mac(secret: bytes, seconds: int, body: bytes) -> str:
    return hmac.new(secret, b"%d." % seconds + body, hashlib.sha256).hexdigest()


def _intent(found: SandboxObject) -> Intent:
    status: Any = found.status
    return Intent(
        id=found.id,
        status=status,
        reference=str(found.reference),
        amount_minor=found.amount_minor,
        currency=str(found.currency),
        refunded_minor=found.refunded_minor,
        failure=found.failure,
        hard=found.hard,
    )
