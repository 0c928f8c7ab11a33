"""The mailbox of development: who may read it, and what it shows."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar.types import ASGIApp

from ximler.core.settings import Settings
from ximler.http.mailbox import folder_of
from ximler.notifications.email import Folder, compose


@pytest.fixture
async def folder(app: Any, settings: Settings) -> Any:
    """The mailbox of the test's application, with two e-mails."""
    before, path = app._app.state.mailbox, settings.data_path / "mail"
    app._app.state.mailbox = path
    for number, to in enumerate(("ada@example.com", "bob@example.com")):
        link = f"http://127.0.0.1:8000/confirm?token={number}"
        subject = f"<b>Confirm</b> {number}"
        await Folder(path).send(
            compose("confirm", settings, to=to, subject=subject, key=str(number), link=link, label="Go", hours=24)
        )
    yield path
    app._app.state.mailbox = before


def reader(app: ASGIApp, *, peer: str = "127.0.0.1", host: str = "localhost:8000") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(peer, 50000))  # type: ignore[arg-type]  # typed by two libraries
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


async def test_programs_read_the_mails_of_one_recipient_newest_first(app: ASGIApp, folder: Path) -> None:
    async with reader(app) as here:
        everybody = (await here.get("/dev/mail.json")).json()["items"]
        (mail,) = (await here.get("/dev/mail.json", params={"to": "Ada@example.com"})).json()["items"]
    assert [each["to"] for each in everybody] == ["bob@example.com", "ada@example.com"]
    assert mail["from"] == "Ximler <no-reply@127.0.0.1>"
    assert mail["links"][0] == "http://127.0.0.1:8000/confirm?token=0"
    assert mail["links"][0] in mail["text"]
    assert mail["links"][0] in mail["html"]


async def test_people_read_a_mail_in_a_frame_without_rights(app: ASGIApp, folder: Path) -> None:
    async with reader(app) as here:
        listed = await here.get("/dev/mail")
        mail = (await here.get("/dev/mail.json")).json()["items"][0]
        page = await here.get(f"/dev/mail/{mail['id']}")
        assert (await here.get("/dev/mail/..%2Fsecret_key")).status_code == 404
        assert (await here.get(f"/dev/mail/{'0' * 32}")).status_code == 404
    assert f'href="/dev/mail/{mail["id"]}"' in listed.text
    assert "&lt;b&gt;Confirm&lt;/b&gt; 1" in listed.text
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox" srcdoc="&lt;!doctype html&gt;' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script-src" not in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("where", "headers"),
    [
        ({"peer": "192.0.2.1"}, {}),
        ({"host": "evil.example"}, {}),
        ({"host": "localhost.evil.example"}, {}),
        ({}, {"origin": "http://localhost:3000"}),
        ({}, {"x-forwarded-for": "127.0.0.1"}),
        ({}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}),
    ],
)
async def test_the_mailbox_does_not_exist_for_others(
    app: ASGIApp, folder: Path, where: dict[str, str], headers: dict[str, str]
) -> None:
    async with reader(app, **where) as elsewhere:
        for path in ("/dev/mail", "/dev/mail.json"):
            assert (await elsewhere.get(path, headers=headers)).status_code == 404


@pytest.mark.parametrize(
    "settings",
    [
        Settings(environment="production"),
        Settings(mongodb_uri="mongodb://127.0.0.1/"),
        Settings(smtp_url="smtp://127.0.0.1"),
        Settings(public_url="https://ximler.example"),
    ],
)
def test_there_is_no_mailbox_outside_of_local_development(settings: Settings) -> None:
    assert folder_of(settings) is None


async def test_without_a_mailbox_its_pages_are_not_found(app: Any, folder: Path) -> None:
    app._app.state.mailbox = None
    async with reader(app) as here:
        assert (await here.get("/dev/mail")).status_code == 404
