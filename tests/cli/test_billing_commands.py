"""`ximler billing`, typed as an operator would:
a bought subscription, a year played forward, money given back."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Ximler

from ximler.billing import checkouts
from ximler.billing.rails import sandbox
from ximler.billing.verify import verify
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

Command = Callable[..., Any]


@pytest.fixture
def billing(
    ximler: Ximler, database: Database, settings: Settings, mongodb_uri: str, tmp_path: Path
) -> Callable[..., Any]:
    """`await billing("show", …)`: its exit code, output and errors."""
    env = {
        "MONGODB_URI": mongodb_uri,
        "XIMLER_DATABASE": database.name,
        "XIMLER_SECRET_KEY": str(settings.secret_key),
        "XIMLER_ENVIRONMENT": "development",
        "XIMLER_DATA_DIR": str(tmp_path),
    }

    async def run(*arguments: str, stdin: str = "", **more: str) -> Any:
        return await asyncio.to_thread(ximler, "billing", *arguments, env={**env, **more}, stdin=stdin)

    return run


async def buy(database: Database, settings: Settings) -> None:
    user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    ada, rail = Actor(kind="user", via="session", user_id=user.id), sandbox(database, settings)
    begun = await checkouts.start(
        database, rail, settings, ada, plan_id="pro", coupon="WELCOME20", return_url="http://localhost/"
    )
    await rail.enter_card(str(begun.session_id), "4242424242424242")
    await checkouts.complete(database, rail, begun.id)


async def test_a_year_is_played_forward_and_money_given_back(
    billing: Command, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await buy(database, settings)
    until = f"{database.clock.now() + timedelta(days=366):%Y-%m-%d}"
    ran = await billing("run", "--until", until, "--json")
    assert (ran.returncode, json.loads(ran.stdout)["waiting"]) == (0, 0), ran.stderr
    shown = json.loads((await billing("show", "ada@example.com", "--json")).stdout)
    assert [each["dueMinor"] for each in shown["invoices"]] == [2900] * 12 + [2320]
    assert shown["subscription"]["status"] == "ACTIVE"
    assert any("begun" in mail.read_text() for mail in (tmp_path / "mail").glob("**/*.eml"))

    payment = shown["payments"][0]["id"]
    refund = ("refund", "ada@example.com", payment, "--amount", "10.01", "--reason", "Asked for", "--key", "t1")
    for _ in range(2):
        assert (await billing(*refund)).stdout == "The refund of 10.01 USD is succeeded.\n"
    too_much = await billing("refund", "ada@example.com", payment, "--amount", "19", "--reason", "More")
    assert (too_much.returncode, "18.99 USD is left" in too_much.stderr) == (2, True)
    credited = await billing("credit", "ada@example.com", "5", "--reason", "Sorry")
    assert credited.stdout == "The credit balance is 5.00 USD.\n"
    nothing = await billing("credit", "ada@example.com", "0", "--reason", "Sorry")
    assert (nothing.returncode, nothing.stderr) == (2, "error: AMOUNT: must not be zero\n")
    text = (await billing("show", "ada@example.com")).stdout
    assert "ada@example.com: pro, ACTIVE, 29.00 USD, renews" in text
    for line in (
        "Payment method: Test card 4242",
        "Credit balance: 5.00 USD",
        "Next invoice: 24.00 USD on ",
        "Next step of billing: ",
    ):
        assert line in text
    assert shown["redemptions"][0]["code"] == "WELCOME20"
    assert shown["coupon"] is None  # it was for one period
    assert "CREDIT_NOTE" in text
    assert (await billing("verify")).stdout == "There are no contradictions.\n"
    compared = await billing("reconcile")
    assert (compared.returncode, compared.stdout[-28:]) == (0, "objects compared, 0 differ.\n")
    actions = {entry["action"] for entry in await database.raw["auditlogs"].find({}).to_list()}
    assert actions >= {"accounts.user.viewed", "billing.payment.refunded", "billing.credit.granted"}

    await database.raw["billingaccounts"].update_many({}, {"$set": {"balances.USD": 7}})
    wrong = await billing("verify", "--json")
    assert (wrong.returncode, len(json.loads(wrong.stdout)["items"])) == (1, 1)
    await database.raw["billingaccounts"].update_many({}, {"$set": {"balances.USD": 500}})
    assert await verify(database) == []


async def test_time_is_played_forward_in_the_sandbox_only(billing: Command) -> None:
    live = await billing("run", "--until", "2099-01-01", XIMLER_ENVIRONMENT="production")
    assert live.returncode == 2
    live = await billing("run", XIMLER_ENVIRONMENT="production")
    assert (live.returncode, "No payment provider" in live.stderr) == (8, True)


async def test_coupons_are_created_listed_edited_and_ended(billing: Command, database: Database) -> None:
    made = await billing(
        "coupon", "create", "spring", "12.5%", "--until", "2999-01-01", "--plan", "pro", "--max-uses", "3"
    )
    assert made.stdout == "The coupon SPRING (12.5% off) is created.\n"
    changed = await billing("coupon", "edit", "SPRING", "--discount", "4.50", "--duration", "forever", "--json")
    found = json.loads(changed.stdout)
    assert [found[name] for name in ("type", "value", "duration", "maxUses")] == ["FIXED", 4.5, "FOREVER", 3]
    assert "SPRING" in (await billing("coupon", "list", "--active")).stdout
    assert (await billing("coupon", "end", "spring")).stdout == "The coupon SPRING (4.5 USD off) is ended.\n"
    listed = json.loads((await billing("coupon", "list", "--active", "--json")).stdout)["items"]
    assert "SPRING" not in {each["code"] for each in listed}
    for wrong in (("create", "X2", "1e400%", "--until", "2999-01-01"), ("create", "X2", "5"), ("edit", "SPRING")):
        assert (await billing("coupon", *wrong)).returncode == 2


async def test_plans_are_created_edited_retired_and_listed(billing: Command) -> None:
    terms = ("--name", "Team", "--projects", "20", "--storage", "2.5", "--api-calls", "-1")
    made = await billing("plan", "create", "team", "49.50", *terms, "--feature", "Chat", "--interval", "year")
    assert made.stdout == "The plan team (49.50 USD a year) is on offer.\n"
    changed = json.loads((await billing("plan", "edit", "team", "--price", "60", "--projects", "30", "--json")).stdout)
    assert (changed["price"], changed["limits"]) == (60, {"projects": 30, "storage": 2.5, "apiCalls": -1})
    assert (await billing("plan", "retire", "team")).stdout == "The plan team (60.00 USD a year) is retired.\n"
    row = (await billing("plan", "list")).stdout.splitlines()[-1].split()
    assert (row[0], row[-2:]) == ("team", ["unlimited", "retired"])
    for wrong in (("create", "x", "1", "--name", "X"), ("create", "team", "1,5", *terms), ("edit", "team")):
        assert (await billing("plan", *wrong)).returncode == 2
    for option, value in (("--projects", "2.5"), ("--storage", "nan"), ("--api-calls", str(2**63))):
        refused = await billing("plan", "edit", "team", option, value)
        assert (refused.returncode, option in refused.stderr) == (2, True), refused.stderr
    assert "it stays on offer" in (await billing("plan", "retire", "free")).stderr


async def test_subscribers_are_extended_repriced_and_marked_as_paid(
    billing: Command, database: Database, settings: Settings
) -> None:
    await buy(database, settings)
    until = f"{database.clock.now() + timedelta(days=45):%Y-%m-%d}"
    extended = await billing("extend", "ada@example.com", until, "--reason", "Outage")
    assert extended.stdout == f"pro lasts until {until} 00:00 UTC.\n", extended.stderr
    await billing("plan", "edit", "pro", "--price", "39")
    dry = await billing("reprice", "pro", "--dry-run")
    assert dry.stdout == "1 subscriber would move to 39.00 USD.\n", dry.stderr
    refused = await billing("reprice", "pro", stdin="n\n")
    assert (refused.returncode, "Move 1 subscriber of pro to 39.00 USD" in refused.stderr) == (130, True)
    moved = json.loads((await billing("reprice", "pro", "--yes", "--json")).stdout)
    assert (moved["moved"], moved["priceMinor"]) == (1, 3900)
    again = await billing("reprice", "pro")
    assert again.stdout == "0 subscribers moved to 39.00 USD. Unchanged: 1 at that price already.\n"
    paid = json.loads((await billing("show", "ada@example.com", "--json")).stdout)["invoices"][0]["id"]
    marked = ("mark-paid", "ada@example.com", paid, "--method", "bank transfer", "--reason", "Statement")
    assert "Only an open invoice" in (await billing(*marked)).stderr
