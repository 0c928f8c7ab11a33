"""A purchase, a renewal and a refund at Stripe, each killed before each of its
commands to the database: money moves once."""

from collections.abc import Awaitable, Callable

import pytest
from tests.billing.conftest import OPERATOR, Buyer, deliver, paid
from tests.billing.killing import Killer
from tests.billing.peer import Peer

from ximler.billing import checkouts, refunds, run
from ximler.billing.stripe import Stripe
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.charge import CHARGES

GOOD = "4242424242424242"
MONTH_MS = 32 * 86_400_000


class Shop:
    """One customer at a time, because the state of Stripe cannot be taken back."""

    def __init__(self, database: Database, stripe: Stripe, peer: Peer, settings: Settings, buyer: Buyer) -> None:
        self.database, self.stripe, self.peer, self.settings, self.buyer = database, stripe, peer, settings, buyer
        self.actor = Actor()
        self.checkout_id = ""

    async def open(self) -> None:
        self.actor = await self.buyer()
        begun = await checkouts.start(
            self.database, self.stripe, self.settings, self.actor, plan_id="pro", return_url="http://localhost/"
        )
        self.checkout_id = begun.id
        await self.peer.enter_card(str(begun.session_id), GOOD)

    async def complete(self) -> None:
        await checkouts.complete(self.database, self.stripe, self.checkout_id)

    async def bought(self) -> None:
        await self.open()
        await self.complete()
        await self.settle()

    async def month_later(self) -> None:
        await self.bought()
        self.database.clock.offset_ms += MONTH_MS

    async def work(self) -> None:
        await run.run(self.database, self.stripe)

    async def refund(self) -> None:
        (payment,) = await self.database.payments.find({"userId": self.actor.user_id})
        await refunds.refund(
            self.database, self.stripe, OPERATOR,
            user_id=self.actor.require_user(), payment_id=payment.id, amount_minor=900, reason="-", key="once",
        )  # fmt: skip

    async def settle(self) -> None:
        for minutes in (0, 2, 6, 65):
            self.database.clock.offset_ms += minutes * 60_000
            await deliver(self.database, self.stripe, self.peer)
            await self.work()

    async def kept(self) -> list[int]:
        """What Stripe has of each of the customer's payments, the oldest first."""
        money = self.peer.money()
        charges = await self.database[CHARGES].find({"userId": self.actor.user_id}, sort=[("createdAt", 1)])
        return [money[each.id] for each in charges if each.id in money]


ACTS: dict[str, tuple[Callable[[Shop], Awaitable[None]], Callable[[Shop], Awaitable[None]], list[int], list[int]]] = {
    "checkout": (Shop.open, Shop.complete, [2900], [2900]),
    "renewal": (Shop.month_later, Shop.work, [2900, 2900], [2900, 2900]),
    "refund": (Shop.bought, Shop.refund, [2000], [2900]),
}


@pytest.mark.slow
@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ACTS)
async def test_money_moves_once_however_the_process_dies(
    name: str, every: int, database: Database, stripe: Stripe, peer: Peer, settings: Settings, buyer: Buyer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shop, killer = Shop(database, stripe, peer, settings, buyer), Killer(monkeypatch)
    before, act, kept, shown = ACTS[name]
    await before(shop)
    assert not await killer.run(lambda: act(shop))
    commands = killer.commands
    for count in range(commands % every, commands, every):
        await before(shop)
        assert await killer.run(lambda: act(shop), commands=count)
        await shop.settle()
        if name == "refund":
            await act(shop)  # the operator repeats it, with the same key
            await shop.settle()
        where = f"killed after {count} of {commands} commands"
        assert (await shop.kept(), await paid(database, shop.actor)) == (kept, shown), where
