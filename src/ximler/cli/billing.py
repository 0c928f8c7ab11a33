"""`ximler billing`: run due work, simulate time, and manage users' money, for operators."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from ximler.cli.billing_coupons import coupon
from ximler.cli.billing_plans import plan
from ximler.cli.context import Id, Run, connected, counted, fields, minute, print_table, progress_bar

__all__ = ["billing"]

_LONGEST = timedelta(days=10 * 366)
_user = click.argument("user", metavar="USER")
_reason = click.option("--reason", required=True, help="For the audit log and the user's record.")
_key = click.option("--key", help="A name for this act: given again, it has no further effect.")


class _Amount(click.ParamType[float]):
    """Major units: 12.50."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            amount = Decimal(value)
        except InvalidOperation:
            amount = Decimal("NaN")
        if not amount.is_finite():
            self.fail(f"{value!r} is not an amount such as 12.50", param, ctx)
        return float(amount)


@click.group()
def billing() -> None:
    """Run due work, and manage plans, coupons, refunds and credit.

    Workers run due work every minute. USER is an id or an e-mail address. Examples:

    \b
    ximler billing show ada@example.com
    ximler billing refund ada@example.com PAYMENT --amount 12.50 --reason "Double booking"
    ximler billing reprice pro --dry-run
    ximler billing run --until 2027-11-30      (sandbox: a year with renewals and mails)
    ximler billing verify
    """


@billing.command("run")
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Play time forward to then (UTC), with mails. Sandbox only.",
)
@connected(json="Print the counts as JSON.", secret=True)
async def run_due(run: Run, until: datetime | None) -> int:
    """Run due work: renewals, retries, trials, refunds, events. Idempotent; safe to interrupt and to run
    concurrently.

    --until is the sandbox's test clock: it plays the steps that are due by then, in order.

    Exit code 1 if accounts wait because the payment provider did not answer.
    """
    from ximler.billing.rails import rail, sandbox
    from ximler.billing.run import forward
    from ximler.billing.run import run as run_now
    from ximler.database import outbox
    from ximler.worker import Worker, equip

    database = run.database
    if until is None:
        with progress_bar("Running", "accounts", quiet=run.as_json) as progress:
            result = await run_now(database, rail(database, run.settings), progress=progress)
    else:
        now, until = database.clock.now(), until.replace(tzinfo=UTC)
        if not now < until <= now + _LONGEST:
            raise click.UsageError(f"--until: {until:%Y-%m-%d} is not within the next ten years")
        tools = equip(run.settings, background=False)(database=database)
        mail = "notifications.announce"
        worker = Worker(tools, handlers={mail: outbox.HANDLERS[mail]})
        try:
            result = await forward(
                database,
                sandbox(database, run.settings),
                until,
                meanwhile=worker.run_due,
                progress=lambda moment: click.echo(f"{moment:%Y-%m-%d %H:%M}", err=True),
            )
        finally:
            tools.keyring.close()
    done = f"{counted(result.steps, 'step')}, {counted(result.events, 'event')}, {counted(result.invoices, 'invoice')} numbered"
    waits = f"; {counted(result.waiting, 'account waits', 'accounts wait')}" if result.waiting else ""
    run.show(result, f"{done}{waits}.")
    return 1 if result.waiting else 0


@billing.command()
@_user
@connected(json="Print all of it as JSON.")
async def show(run: Run, user: str) -> None:
    """Show the billing of USER. Audited.

    The subscription with pending change and coupon, the payment methods, the credit balance, invoices,
    payments and refunds, and when billing acts next.
    """
    from ximler.billing import statement
    from ximler.core.money import Money

    found = await run.user(user, closed=True)
    theirs = await statement.read(run.database, run.actor, found.id)
    subscription = theirs.subscription

    def text() -> None:
        for line in _summary(found.email, theirs):
            click.echo(line)
        if theirs.invoices:
            print_table(
                ("Invoice", "Issued (UTC)", "Kind", "Status", "Total", "Due"),
                [
                    (each.number or "", minute(each.issued_at), each.kind, each.status,
                     Money(each.total_minor, each.currency), Money(each.due_minor, each.currency))
                    for each in theirs.invoices
                ],
            )  # fmt: skip
        if theirs.payments:
            print_table(
                ("Payment", "Made (UTC)", "Status", "Amount", "For", "Failure"),
                [
                    (each.id, minute(each.created_at), each.status, each.amount_money, each.description or "",
                     each.failure or "")
                    for each in theirs.payments
                ],
            )  # fmt: skip
        if theirs.refunds:
            print_table(
                ("Refund of", "Made (UTC)", "Status", "Amount", "To", "Reason"),
                [
                    (each.payment_id, minute(each.created_at), each.status,
                     Money(each.amount_minor, each.currency), each.to, each.reason or "")
                    for each in theirs.refunds
                ],
            )  # fmt: skip

    run.show(
        {
            "user": found.id,
            "email": found.email,
            "subscription": subscription and _subscription(subscription),
            "coupon": theirs.rebate and fields(theirs.rebate, "code percent minor currency renewals"),
            "balances": theirs.balances,
            "details": fields(theirs.details, "name address country vat_id"),
            "paymentMethods": [
                fields(each, "id label expires declined") | {"isDefault": each is theirs.methods[0]}
                for each in theirs.methods
            ],
            "nextAt": theirs.next_at,
            "upcoming": theirs.upcoming
            and {"at": theirs.upcoming.period.start, "planId": theirs.upcoming.terms.plan_id}
            | fields(theirs.upcoming.quote, "currency due_minor lines"),
            "invoices": [
                fields(each, "id number kind status issued_at currency total_minor due_minor lines")
                for each in theirs.invoices
            ],
            "payments": [_payment(each) for each in theirs.payments],
            "refunds": [_refund(each) for each in theirs.refunds],
            "redemptions": [
                fields(each, "code status plan_id subscription_id confirmed_at created_at")
                for each in theirs.redemptions
            ],
        },
        text,
    )


@billing.command()
@_user
@click.argument("payment", type=Id())
@click.option("--amount", type=_Amount(), help="In the payment's currency: 12.50. All that is left, unless given.")
@click.option("--to", type=click.Choice(["CARD", "BALANCE"], case_sensitive=False), default="CARD", show_default=True)
@_reason
@_key
@connected(json="Print the refund as JSON.", secret=True)
async def refund(
    run: Run, user: str, payment: Any, amount: float | None, to: Any, reason: str, key: str | None
) -> None:
    """Refund PAYMENT of USER, wholly or in part. Audited."""
    from ximler.billing import refunds
    from ximler.billing.rails import rail
    from ximler.core.money import Money

    user_id = await run.user_id(user)
    paid = await run.database.payments.get({"_id": payment, "userId": user_id})
    made = await refunds.refund(
        run.database,
        rail(run.database, run.settings),
        run.actor,
        user_id=user_id,
        payment_id=paid.id,
        amount_minor=None if amount is None else Money.of(amount, paid.currency.upper()).minor,
        to=to.upper(),
        reason=reason,
        key=key,
    )
    run.show(_refund(made), f"The refund of {Money(made.amount_minor, made.currency)} is {made.status.lower()}.")


@billing.command()
@_user
@click.argument("amount", type=_Amount())
@click.option("--currency", default="USD", show_default=True, help="ISO 4217.")
@_reason
@_key
@connected(json="Print the balance as JSON.")
async def credit(run: Run, user: str, amount: float, currency: str, reason: str, key: str | None) -> None:
    """Add AMOUNT to the credit balance of USER. Audited.

    A negative amount is taken away: ximler billing credit ada@example.com --reason "Typo" -- -5
    """
    from ximler.billing import statement
    from ximler.core.money import Money

    granted = Money.of(amount, currency.upper())
    balance = await statement.grant(
        run.database, run.actor, user_id=await run.user_id(user), amount=granted, reason=reason, key=key
    )
    total = Money(balance, granted.currency)
    run.show({"currency": total.currency, "balanceMinor": balance}, f"The credit balance is {total}.")


@billing.command()
@_user
@click.argument("until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]))
@_reason
@connected(json="Print the subscription as JSON.")
async def extend(run: Run, user: str, until: datetime, reason: str) -> None:
    """Let the current period, or the trial, of USER end at UNTIL (UTC), at no charge. Audited.

    Later periods are counted from there. The user is notified. Example:

    \b
    ximler billing extend ada@example.com 2027-03-01 --reason "Outage of 20 February"
    """
    from ximler.billing import operations

    found = await operations.extend(
        run.database, run.actor, user_id=await run.user_id(user), until=until.replace(tzinfo=UTC), reason=reason
    )
    run.show(_subscription(found), f"{found.plan_id} lasts until {minute(found.period_end)} UTC.")


@billing.command("mark-paid")
@_user
@click.argument("invoice", type=Id())
@click.option("--method", required=True, help="How it was paid, such as 'bank transfer'.")
@_reason
@connected(json="Print the payment as JSON.")
async def mark_paid(run: Run, user: str, invoice: Any, method: str, reason: str) -> None:
    """Record that the open INVOICE (its id) of USER was paid without the payment provider. Audited.

    Takes effect as a payment of the whole amount due. Example:

    \b
    ximler billing mark-paid ada@example.com 6b0c03bd… --method "bank transfer" --reason "Statement of 3 May"
    """
    from ximler.billing import operations

    made = await operations.mark_paid(
        run.database, run.actor, user_id=await run.user_id(user), invoice_id=invoice, method=method, reason=reason
    )
    run.show(_payment(made), f"The invoice is paid: {made.amount_money} by {method}.")


@billing.command()
@click.argument("plan", metavar="PLAN")
@click.option("--dry-run", is_flag=True, help="Count the subscribers, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected(json="Print the counts as JSON. Needs --dry-run or --yes.")
async def reprice(run: Run, plan: str, dry_run: bool, yes: bool) -> None:
    """Move the subscribers of PLAN to its present price, from their next period on. Audited.

    Each is notified by mail. Safe to repeat: subscribers who have the price stay as they are. Example:

    \b
    ximler billing plan edit pro --price 39
    ximler billing reprice pro --dry-run
    """
    from ximler.billing import operations
    from ximler.core.money import Money

    if run.as_json and not (dry_run or yes):
        raise click.UsageError("--json needs --dry-run or --yes")
    with progress_bar("Repricing", "subscribers", quiet=run.as_json) as progress:

        async def work(*, dry_run: bool) -> Any:
            return await operations.reprice(
                run.database,
                run.actor,
                plan_id=plan,
                dry_run=dry_run,
                progress=lambda so_far: progress(so_far.moved + so_far.already + so_far.ending + so_far.other),
            )

        found = await work(dry_run=dry_run or not yes)
    price = Money(found.price_minor, found.currency)
    if not dry_run and not yes and found.moved:
        question = f"Move {counted(found.moved, 'subscriber')} of {plan} to {price}, with a mail to each?"
        click.confirm(question, abort=True, err=True)
        with progress_bar("Repricing", "subscribers", quiet=run.as_json) as progress:
            found = await work(dry_run=False)
    stay = [
        counted(count, text, text)
        for count, text in (
            (found.already, "at that price already"),
            (found.ending, "about to end"),
            (found.other, "of another currency, interval or pending plan"),
        )
        if count
    ]
    verb = "would move" if dry_run else "moved"
    run.show(
        fields(found, "plan_id price_minor currency moved already ending other"),
        f"{counted(found.moved, 'subscriber')} {verb} to {price}."
        + (f" Unchanged: {', '.join(stay)}." if stay else ""),
    )


@billing.command()
@connected(json="Print the contradictions as JSON.")
async def verify(run: Run) -> int:
    """Verify billing's invariants and list violations. Exit code 1 if there are any. Read-only."""
    from ximler.billing.verify import verify as check

    with progress_bar("Verifying", "accounts", quiet=run.as_json) as progress:
        problems = await check(run.database, progress=progress)
    run.show({"items": problems, "next": None}, "\n".join(problems) or "There are no contradictions.")
    return 1 if problems else 0


@billing.command()
@click.option("--repair", is_flag=True, help="Apply the provider's state where it differs.")
@connected(json="Print the differences as JSON.", secret=True)
async def reconcile(run: Run, repair: bool) -> int:
    """Compare payments, refunds, payment methods, checkouts and mirrored
    subscriptions with the payment provider.

    Lists the differences. Exit code 1 if anything is left to repair.
    """
    from msgspec import to_builtins

    from ximler.billing.rails import rail
    from ximler.billing.reconcile import reconcile as compare

    webhook = f"{run.settings.public_url}/webhooks/stripe" if run.settings.public_url else None
    provider = rail(run.database, run.settings)
    with progress_bar("Comparing", "objects", quiet=run.as_json) as progress:
        report = await compare(run.database, provider, repair=repair, webhook=webhook, progress=progress)
    lines = []
    for each in report.findings:
        whose = f"User {each.user_id}" if each.user_id else "Stripe"
        rest = ", repaired" if each.repaired else "" if each.repairable else ", look into it"
        lines.append(f"{whose}: {each.problem}{rest}")
    summary = f"{report.checked:,} objects compared, {len(lines):,} differ."
    run.show(
        {"items": to_builtins(report.findings), "next": None, "checked": report.checked}, "\n".join([*lines, summary])
    )
    return 1 if any(not each.repaired for each in report.findings) else 0


billing.add_command(coupon)
billing.add_command(plan)


def _summary(email: str, theirs: Any) -> Iterator[str]:
    """The lines above the tables: one fact each."""
    from ximler.core.money import Money

    subscription, rebate = theirs.subscription, theirs.rebate
    if subscription is None:
        yield f"{email} has no subscription."
    else:
        moment = subscription.end_date or subscription.period_end
        ends = "ends" if subscription.status in ("ACTIVE", "PAST_DUE") else "ended"
        ends = "renews" if subscription.auto_renew else ends
        end = f", {ends} {minute(moment)} UTC" if moment else ""
        yield f"{email}: {subscription.plan_id}, {subscription.status}, {subscription.price_money}{end}"
        if subscription.trial_end:
            yield f"Trial until: {minute(subscription.trial_end)} UTC"
        if subscription.pending_plan_id:
            yield f"Pending change: to {subscription.pending_plan_id} at the end of the period"
    if rebate:
        off = f"{rebate.percent}%" if rebate.percent is not None else Money(rebate.minor, rebate.currency)
        left = "every renewal" if rebate.renewals is None else counted(rebate.renewals, "more renewal")
        yield f"Coupon: {rebate.code}, {off} off, for {left}"
    for method in theirs.methods:
        valid = f"valid until {method.expires}" if method.expires else ""
        marks = ("default" if method is theirs.methods[0] else "", valid, "declined for good" * method.declined)
        yield f"Payment method: {', '.join([method.label, *filter(None, marks)])}"
    if given := [text for text in fields(theirs.details, "name address country vat_id").values() if text]:
        yield f"Billing details: {', '.join(' '.join(text.split()) for text in given)}"
    for currency, minor in theirs.balances.items():
        yield f"Credit balance: {Money(minor, currency)}"
    if waiting := sum(each.status == "PENDING" for each in theirs.refunds):
        yield f"Pending refunds: {waiting}"
    if theirs.upcoming:
        due = Money(theirs.upcoming.quote.due_minor, theirs.upcoming.quote.currency)
        yield f"Next invoice: {due} on {minute(theirs.upcoming.period.start)} UTC"
    if theirs.next_at:
        yield f"Next step of billing: {minute(theirs.next_at)} UTC"


def _subscription(found: Any) -> dict[str, Any]:
    return fields(
        found, "id plan_id status price_minor currency auto_renew period_start period_end trial_end pending_plan_id"
    )


def _payment(made: Any) -> dict[str, Any]:
    return fields(made, "id status amount_minor currency description failure created_at invoice_id")


def _refund(made: Any) -> dict[str, Any]:
    return fields(made, "id payment_id status amount_minor tax_minor currency to reason failure created_at")
