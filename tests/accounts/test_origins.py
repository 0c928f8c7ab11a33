"""Places and devices of sign-ins, with a GeoIP file that is written here."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from ximler.accounts import export, origins, sessions
from ximler.accounts.keyring import Keyring
from ximler.accounts.sessions import SignedIn
from ximler.core.actor import Actor
from ximler.core.settings import Settings, SettingsError
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.user import User

PASSWORD = "correct horse battery"
BERLIN, PARIS, FRANCE, NOWHERE = "203.0.113.5", "198.51.100.7", "192.0.2.1", "10.0.0.1"
FIREFOX, CURL = "Mozilla/5.0 (X11) Firefox/145.0", "curl/8.5"


@pytest.fixture
def located(settings: Settings, tmp_path: Path) -> Settings:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Test-City", languages=["en"])
    germany, france = ({"names": {"en": name}} for name in ("Germany", "France"))
    writer.insert_network(IPSet([f"{BERLIN}/24"]), {"city": {"names": {"en": "Berlin"}}, "country": germany})
    writer.insert_network(IPSet([f"{PARIS}/24"]), {"city": {"names": {"en": "Paris"}}, "country": france})
    writer.insert_network(IPSet([f"{FRANCE}/24"]), {"country": france})
    writer.to_db_file(str(tmp_path / "cities.mmdb"))
    return msgspec.structs.replace(settings, geoip_file=tmp_path / "cities.mmdb")


@pytest.fixture
def enter(database: Database, keyring: Keyring, located: Settings, ada: User) -> Any:
    async def enter(
        address: str, agent: str | None = FIREFOX, device: str | None = None, settings: Settings = located
    ) -> SignedIn:
        actor = Actor(address=address, user_agent=agent)
        return await sessions.sign_in(
            database, keyring, settings, actor, email=ada.email, password=PASSWORD, device=device
        )

    return enter


async def reported(database: Database) -> tuple[list[str], int]:
    """The origins that mails report, and the number of notifications."""
    jobs = await database.raw["outbox"].find({"kind": "accounts.send_notice"}).sort("_id").to_list()
    return [job["payload"]["details"]["origin"] for job in jobs], await database.raw["notifications"].count_documents(
        {}
    )


async def test_a_sign_in_from_a_new_place_is_reported_once_and_never_the_first(
    database: Database, enter: Any, ada: User
) -> None:
    first = await enter(BERLIN)
    assert first.session.place == "Berlin, Germany"
    assert await reported(database) == ([], 0)
    await enter(BERLIN)
    assert (await enter(PARIS, device=first.device)).session.place == "Paris, France"
    assert await reported(database) == (["Paris, France"], 1)
    with round_trips() as usual:
        await enter(PARIS)
    with round_trips() as unknown:
        assert (await enter(NOWHERE)).session.place is None
    assert len(usual) == len(unknown)
    assert (await enter(FRANCE)).session.place == "France"
    assert await reported(database) == (["Paris, France", "France"], 2)
    (message, _) = await database.notifications.find({"userId": ada.id})
    assert "Paris, France" in message.message


async def test_a_sign_in_from_a_new_device_is_reported_unless_it_shows_its_token(
    database: Database, enter: Any, settings: Settings
) -> None:
    first = await enter(BERLIN, settings=settings)  # without a file
    assert first.session.place is None
    await enter(BERLIN, FIREFOX.replace("145", "146"), settings=settings)  # the same browser, updated
    await enter(BERLIN, "an app", first.device, settings=settings)
    assert await reported(database) == ([], 0)
    await enter(BERLIN, CURL, settings=settings)
    await enter(BERLIN, CURL, settings=settings)
    assert await reported(database) == (["a new device"], 0)
    await enter(BERLIN, None, settings=settings)
    await enter(BERLIN, "17.4", settings=settings)  # as bare as none
    assert await reported(database) == (["a new device"] * 2, 0)


@pytest.mark.slow
async def test_ever_new_browsers_send_ten_mails_a_day_without_their_words(database: Database, enter: Any) -> None:
    for name in "abcdefghijklm":
        await enter(BERLIN, f"Refund: https://{name}.evil.example " + "x" * 200)
    assert await reported(database) == (["a new device in Berlin, Germany"] * 10, 0)
    database.clock.offset_ms += 25 * 3600 * 1000
    await enter(BERLIN, "another")
    assert await reported(database) == (["a new device in Berlin, Germany"] * 11, 0)


async def test_the_mail_names_device_and_place(database: Database, enter: Any) -> None:
    await enter(BERLIN)
    await enter(PARIS, CURL)
    assert await reported(database) == (["a new device in Paris, France"], 1)


async def test_ten_places_are_remembered_exported_and_erased_with_the_person(
    database: Database, enter: Any, ada: User
) -> None:
    await enter(BERLIN)
    credential = await database.raw["credentials"].find_one({"_id": ada.id})
    assert credential is not None
    assert credential["places"] == ["Berlin, Germany"]
    found = await export.account(database, ada.id)
    assert (found["places"], found["sessions"][0]["place"]) == (["Berlin, Germany"], "Berlin, Germany")
    places = [f"place {n}" for n in range(10)]
    await database.raw["credentials"].update_one({"_id": ada.id}, {"$set": {"places": places}})
    await enter(BERLIN)
    credential = await database.raw["credentials"].find_one({"_id": ada.id})
    assert credential is not None
    assert credential["places"] == [*places[1:], "Berlin, Germany"]


def test_a_file_that_cannot_be_used_is_named_before_anything_is_served(settings: Settings, tmp_path: Path) -> None:
    for name, content in (("none.mmdb", None), ("text.mmdb", b"no database")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingsError, match=name):
            origins.check(msgspec.structs.replace(settings, geoip_file=tmp_path / name))
