"""Users as an operator sees them."""

from ximler.accounts import strength
from ximler.accounts.keyring import Keyring
from ximler.accounts.registration import AccountExists, address, person
from ximler.core.actor import Actor
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.failures import DocumentExists
from ximler.schema.user import User

__all__ = ["create", "page"]


async def create(
    database: Database, keyring: Keyring, actor: Actor, *, name: str, email: str, password: str, verified: bool = True
) -> User:
    """An account without a confirmation link. Operators only. Raises Invalid, WeakPassword, AccountExists, Forbidden."""
    actor.require_operator()
    name, email = person(name), address(email)
    await strength.check(keyring, password, own=(name, email))
    user = User(name=name, email=email, password=await keyring.hash_password(password), email_verified=verified)
    try:
        return await database.users.insert(user)
    except DocumentExists:
        raise AccountExists(
            f"There is an account with the address {user.email} already", fields={"email": "is taken"}
        ) from None


async def page(database: Database, actor: Actor, *, first: int = 20, after: Position | None = None) -> Page[User]:
    """Users, newest first. Operators only."""
    actor.require_operator()
    return await database.users.page({}, first=first, after=after)
