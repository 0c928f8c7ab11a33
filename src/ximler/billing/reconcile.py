"""`billing reconcile`: compares Ximler's documents with the provider, lists differences,
and repairs them on request.

A repair applies the provider's current state, as a lost event would have: payments and refunds that were
decided, checkouts that were completed, subscriptions that Stripe bills. Money that the provider moved without
Ximler is reported only.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import msgspec
from bson import ObjectId

from ximler.billing import checkouts, erasure, payments, refunds, states, stripe_mirror
from ximler.billing.account import decline, in_turn, lock, methods, store
from ximler.billing.provider import Intent, Mirrors, Provider
from ximler.core.errors import Invalid, NotFound
from ximler.core.money import Money
from ximler.database import Database, outbox
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount
from ximler.schema.charge import CHARGES, Charge
from ximler.schema.checkout import CHECKOUTS
from ximler.schema.refund import REFUNDS, Refund

__all__ = ["Finding", "Report", "reconcile"]

_AT_ONCE = 8  # Stripe allows 100 reads a second; customers have the rest
_SETTLED = timedelta(minutes=5)  # younger ones may be under way

Repair = Callable[[], Awaitable[object]]


class Finding(msgspec.Struct, kw_only=True, rename="camel"):
    """One difference; `user_id` is None for the endpoint, and after erasure.

    `repairable`: the provider's state can be applied; `repaired`: it was.
    """

    user_id: str | None = None
    problem: str
    repairable: bool = False
    repaired: bool = False


class Report(msgspec.Struct, kw_only=True):
    """`checked` counts the objects that were read at the provider."""

    checked: int = 0
    findings: list[Finding] = []


async def reconcile(
    database: Database,
    provider: Provider,
    *,
    repair: bool = False,
    webhook: str | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Report:
    """Compare everything. Reads only, unless asked to repair. Raises ProviderUnavailable.

    `webhook` is the address that the provider is to send events to: its endpoint is checked, too.
    """
    report = await _Reconciling(database, provider, repair=repair, progress=progress).run()
    if webhook is not None and isinstance(provider, Mirrors):
        report.findings[:0] = [Finding(problem=problem) for problem in await provider.misconfigured(webhook)]
    return report


class _Reconciling:
    def __init__(
        self, database: Database, provider: Provider, *, repair: bool, progress: Callable[[int], object]
    ) -> None:
        self._database = database
        self._provider = provider
        self._repair = repair
        self._progress = progress
        self._report = Report()

    async def run(self) -> Report:
        await self._accounts()
        await self._checkouts()
        provider = self._provider
        if isinstance(provider, Mirrors):
            await self._mirrored(provider)
            await self._erased(provider)
        await self._erased_customers()
        return self._report

    async def _accounts(self) -> None:
        """Several at once, in bounded memory."""
        waiting: list[BillingAccount] = []
        async for account in self._database[BILLING_ACCOUNTS].stream({}):
            waiting.append(account)
            if len(waiting) == _AT_ONCE:
                await self._all(waiting)
                waiting = []
        await self._all(waiting)

    async def _all(self, waiting: list[BillingAccount]) -> None:
        for outcome in await asyncio.gather(*map(self._account, waiting), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _account(self, account: BillingAccount) -> None:
        of_account = await self._database[REFUNDS].find({"userId": account.id})
        for charge in await self._database[CHARGES].find({"userId": account.id}):
            await self._charge(charge, [each for each in of_account if each.charge_id == charge.id])
        for refund in of_account:
            await self._refund(refund)
        for method in methods(account):
            if method.declined:
                continue
            self._read()
            if not await self._provider.usable(method.id):
                problem = f"the payment method {method.label} does not exist at the provider any more"
                await self._found(account.id, problem, partial(self._forget_method, account.id, method.id))

    async def _charge(self, charge: Charge, of_charge: list[Refund]) -> None:
        intent_id = charge.intent_id
        if intent_id is None or charge.created_at > self._database.clock.now() - _SETTLED:
            return
        name = f"payment {charge.payment_id} ({Money(charge.amount_minor, charge.currency)})"
        self._read()
        try:
            intent = await self._provider.intent(intent_id)
        except NotFound:
            await self._found(charge.user_id, f"{name} does not exist at the provider as {intent_id}")
            return
        if (intent.amount_minor, intent.currency) != (charge.amount_minor, charge.currency):
            theirs = Money(intent.amount_minor, intent.currency)
            await self._found(charge.user_id, f"{name} is of {theirs} at the provider")
        if intent.status == "SUCCEEDED" and charge.status != "PAID":
            await self._decided(charge, intent, f"{name} is {charge.status} here, and paid at the provider")
        elif intent.status == "FAILED" and charge.status == "PENDING":
            await self._decided(charge, intent, f"{name} is PENDING here, and failed at the provider")
        elif intent.status != "SUCCEEDED" and charge.status == "PAID":
            await self._found(charge.user_id, f"{name} is PAID here, and {intent.status} at the provider")
        else:
            await self._refunded(charge, intent, of_charge, name)

    async def _decided(self, charge: Charge, intent: Intent, problem: str) -> None:
        await self._found(
            charge.user_id,
            problem,
            partial(payments.observe, self._database, self._provider, intent.id, charge.id),
        )

    async def _refunded(self, charge: Charge, intent: Intent, of_charge: list[Refund], name: str) -> None:
        """Refunds to a card that succeeded are at the provider; pending ones, and lost disputes, may be."""
        sure = sum(each.amount_minor for each in of_charge if (each.to, each.status) == ("CARD", "SUCCEEDED"))
        most = sum(each.amount_minor for each in of_charge if each.to != "BALANCE" and each.status != "FAILED")
        if not sure <= intent.refunded_minor <= most:
            theirs, ours = (Money(minor, charge.currency) for minor in (intent.refunded_minor, most))
            await self._found(charge.user_id, f"{name}: {theirs} is refunded at the provider, and {ours} here")

    async def _refund(self, refund: Refund) -> None:
        provider_id = refund.provider_id
        if provider_id is None or refund.to != "CARD":
            return
        self._read()
        name = f"refund {refund.id} ({Money(refund.amount_minor, refund.currency)})"
        try:
            state = await self._provider.refund_state(provider_id)
        except NotFound:
            await self._found(refund.user_id, f"{name} does not exist at the provider as {provider_id}")
            return
        if state.status != refund.status:
            problem = f"{name} is {refund.status} here, and {state.status} at the provider"
            if state.status == "PENDING" or refund.status == "FAILED":
                await self._found(refund.user_id, problem)
            else:
                await self._found(
                    refund.user_id,
                    problem,
                    partial(refunds.observe, self._database, self._provider, provider_id, refund.id),
                )

    async def _checkouts(self) -> None:
        """Completed on the provider's page, and not here: the event was lost, or is late."""
        open_ = {"status": "OPEN", "expiresAt": {"$gt": self._database.clock.now()}}
        for checkout in await self._database[CHECKOUTS].find(open_):
            if checkout.session_id is None:
                continue
            self._read()
            session = await self._provider.session(checkout.session_id)
            entered = session.method is not None and session.method.id != checkout.tried
            if entered or session.subscription_id is not None:
                problem = f"the checkout of {checkout.terms.plan_name} was completed at the provider"
                await self._found(
                    checkout.user_id,
                    problem,
                    partial(checkouts.complete, self._database, self._provider, checkout.id),
                )

    async def _mirrored(self, stripe: Mirrors) -> None:
        live = {"status": {"$in": list(states.LIVE)}}
        async for found in self._database.subscriptions.stream(live, sort=[("status", 1)]):
            if found.stripe_subscription_id is None:
                continue
            self._read()
            theirs_id = found.stripe_subscription_id
            try:
                theirs = await stripe.subscription(theirs_id)
            except NotFound:
                await self._found(found.user_id, f"the subscription {theirs_id} does not exist at Stripe")
                continue
            except Invalid as unreadable:
                await self._found(found.user_id, unreadable.message)
                continue
            if (theirs.status, theirs.period_end) != (found.status, found.period_end):
                problem = f"the subscription {theirs_id} is {found.status} here, and {theirs.status} at Stripe"
                if theirs.status == found.status:
                    problem = f"the subscription {theirs_id} is of another period here than at Stripe"
                await self._found(
                    found.user_id,
                    problem,
                    partial(stripe_mirror.see_subscription, self._database, stripe, theirs_id),
                )

    async def _erased(self, stripe: Mirrors) -> None:
        """Subscriptions of erased users that could not be ended yet."""
        for job in await outbox.unfinished(self._database, erasure.end_at_stripe.name):
            theirs_id = str(job.payload.get("subscriptionId"))
            self._read()
            problem = f"the subscription {theirs_id} of an erased user was not ended at Stripe yet"
            problem += f": {job.last_error or 'it waits'}"
            await self._found(None, problem, partial(self._end_erased, stripe, job, theirs_id))

    async def _end_erased(self, stripe: Mirrors, job: outbox.Job, theirs_id: str) -> None:
        with contextlib.suppress(NotFound):
            await stripe.end_subscription(theirs_id, now=True)
        await outbox.cancel(self._database, job.id)

    async def _erased_customers(self) -> None:
        """Customers of erased users that could not be deleted yet."""
        for job in await outbox.unfinished(self._database, erasure.forget_customer.name):
            customer_id = str(job.payload.get("customerId"))
            problem = f"the customer {customer_id} of an erased user was not deleted at the provider yet"
            problem += f": {job.last_error or 'it waits'}"
            await self._found(None, problem, partial(self._forget_customer, job, customer_id))

    async def _forget_customer(self, job: outbox.Job, customer_id: str) -> None:
        await self._provider.forget_customer(customer_id)
        await outbox.cancel(self._database, job.id)

    async def _forget_method(self, user_id: ObjectId, method_id: str) -> None:
        """It is not charged again; the user is asked for another as after a decline for good."""

        async def write(transaction: Database) -> None:
            account = await lock(transaction, user_id)
            decline(account, method_id)
            await store(transaction, account)

        await in_turn(self._database, user_id, write)

    async def _found(self, user_id: ObjectId | None, problem: str, repair: Repair | None = None) -> None:
        finding = Finding(user_id=str(user_id) if user_id else None, problem=problem, repairable=repair is not None)
        if repair is not None and self._repair:
            await repair()
            finding.repaired = True
        self._report.findings.append(finding)

    def _read(self) -> None:
        self._report.checked += 1
        self._progress(self._report.checked)
