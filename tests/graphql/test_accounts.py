"""Accounts as clients meet them: second factor, step-up, another address, profile."""

from typing import Any

import pyotp
import pytest
from tests.mailing import Mailbox, worker_of
from tests.serving import PASSWORD, Client

from ximler.accounts.keyring import Keyring
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.user import NotificationSettings

SIGN_IN = """mutation ($email: String!, $password: String!, $code: String) {
  signIn(email: $email, password: $password, code: $code) { token } }"""
PROVE = "mutation ($password: String!, $code: String) { reauthenticate(password: $password, code: $code) }"
RENAME = "mutation ($name: String!) { updateProfile(name: $name) { name } }"
SETTINGS = """mutation ($input: NotificationSettingsInput!) { updateNotificationSettings(input: $input) {
  notificationSettings { email { productUpdates billingAlerts securityAlerts } push { enabled productUpdates } } } }"""


def code_of(database: Database, secret: str) -> str:
    return pyotp.TOTP(secret).at(database.clock.now())


@pytest.mark.slow
async def test_a_second_factor_from_beginning_to_end(ada: Client, database: Database) -> None:
    assert (await ada.ask("{ secondFactor { enabled since recoveryCodesLeft } }"))["secondFactor"] == {
        "enabled": False, "since": None, "recoveryCodesLeft": 0,
    }  # fmt: skip
    shown = (await ada.ask("mutation { beginTotp { secret uri expiresAt } }"))["beginTotp"]
    assert shown["uri"].startswith("otpauth://totp/")
    confirm = "mutation ($code: String!) { confirmTotp(code: $code) }"
    codes = (await ada.ask(confirm, code=code_of(database, shown["secret"])))["confirmTotp"]
    assert len(codes) == 10

    bare = await ada.ask(SIGN_IN, email="ada@example.com", password=PASSWORD)
    assert (bare.code, bare.errors[0]["extensions"]["kind"]) == ("SECOND_FACTOR_REQUIRED", "UNAUTHENTICATED")
    assert (await ada.ask(SIGN_IN, email="ada@example.com", password="a wrong one")).code == "BAD_CREDENTIALS"
    wrong = await ada.ask(SIGN_IN, email="ada@example.com", password=PASSWORD, code="a wrong one")
    assert wrong.code == "WRONG_CODE"
    database.clock.offset_ms += 30_000
    with_clock(ada, database)
    assert (await ada.ask(SIGN_IN, email="ada@example.com", password=PASSWORD, code=codes[0]))["signIn"]["token"]
    code = code_of(database, shown["secret"])
    assert (await ada.ask(SIGN_IN, email="ada@example.com", password=PASSWORD, code=code))["signIn"]["token"]
    left = (await ada.ask("{ secondFactor { enabled recoveryCodesLeft } }"))["secondFactor"]
    assert left == {"enabled": True, "recoveryCodesLeft": 9}
    assert len((await ada.ask("mutation { regenerateRecoveryCodes }"))["regenerateRecoveryCodes"]) == 10
    assert (await ada.ask("mutation { disableTotp }"))["disableTotp"] is True
    assert (await ada.ask(SIGN_IN, email="ada@example.com", password=PASSWORD))["signIn"]["token"]


async def test_sensitive_changes_require_a_recent_sign_in(ada: Client, database: Database) -> None:
    database.clock.offset_ms += 3_600_000
    with_clock(ada, database)
    asked = 'mutation { requestEmailChange(email: "new@example.com") { accepted } }'
    changed = f'mutation {{ changePassword(current: "{PASSWORD}", new: "another long password") {{ token }} }}'
    for mutation in (asked, changed, "mutation { beginTotp { uri } }", "mutation { disableTotp }"):
        refused = await ada.ask(mutation)
        assert (refused.code, refused.errors[0]["extensions"]["kind"]) == ("STEP_UP_REQUIRED", "FORBIDDEN")
    assert (await ada.ask(PROVE, password="a wrong one")).fields == {"password": "is not right"}
    assert (await ada.ask(PROVE, password=PASSWORD))["reauthenticate"]
    assert (await ada.ask(asked))["requestEmailChange"] == {"accepted": True}


async def test_another_address_by_the_links_page(
    ada: Client, database: Database, settings: Settings, keyring: Keyring, mailbox: Mailbox
) -> None:
    assert (await ada.ask('mutation { requestEmailChange(email: "new@example.com") { accepted } }'))[
        "requestEmailChange"
    ]
    await worker_of(database, settings, keyring, mailbox).run_due()
    mailbox.messages = [message for message in mailbox.messages if message["To"] == "new@example.com"]
    token = mailbox.last_token
    page = await ada.http.get("/email", params={"token": token})
    assert (page.status_code, token in page.text) == (200, True)
    refused = await ada.http.post("/email", data={"token": token, "password": "a wrong one"})
    assert (refused.status_code, "password" in refused.text) == (422, True)
    done = await ada.http.post("/email", data={"token": token, "password": PASSWORD})
    assert (done.status_code, "new@example.com" in done.text) == (200, True)
    again = await ada.http.post("/email", data={"token": token, "password": PASSWORD})
    assert (again.status_code, "was used" in again.text) == (422, True)
    assert (await ada.ask("{ me { email } }"))["me"] == {"email": "new@example.com"}
    assert (await ada.ask("mutation { cancelEmailChange }"))["cancelEmailChange"] is False


async def test_another_address_by_the_api(ada: Client, database: Database, keyring: Keyring) -> None:
    await ada.ask('mutation { requestEmailChange(email: "new@example.com") { accepted } }')
    (waiting,) = await database.raw["emailchanges"].find({}).to_list()
    confirm = "mutation ($t: String!, $p: String!) { confirmEmailChange(token: $t, password: $p) }"
    assert (await Client(ada.app).ask(confirm, t=keyring.sign("email", waiting["requestId"]), p=PASSWORD)).data
    assert (await ada.ask("{ me { email } }"))["me"] == {"email": "new@example.com"}


ASK = 'mutation { requestEmailChange(email: "new@example.com") { accepted } }'
COMMIT = ("commitTransaction", "")
USER, LOG, JOB = ("update", "users"), ("insert", "auditlogs"), ("insert", "outbox")
THROTTLE = ("findAndModify", "throttles")  # by account and by mailbox, side by side
COSTS = {
    "{ secondFactor { enabled } }": [("find", "credentials")],
    'mutation { updateProfile(name: "Ada L.") { id } }': [("find", "users"), ("findAndModify", "users"), LOG, COMMIT],
    ASK: [THROTTLE, THROTTLE, USER, ("update", "emailchanges"), JOB, JOB, LOG, COMMIT],
    "mutation { cancelEmailChange }": [USER, ("delete", "emailchanges"), LOG, COMMIT],
    "mutation { beginTotp { secret } }": [("update", "credentials")],
    f'mutation {{ reauthenticate(password: "{PASSWORD}") }}': [
        ("find", "throttles"), ("find", "credentials"), ("update", "sessions"),
    ],
}  # fmt: skip


async def test_each_operation_has_the_documented_cost(ada: Client) -> None:
    for operation, expected in COSTS.items():
        with round_trips() as trips:
            answer = await ada.ask(operation)
        assert not answer.errors, answer.errors
        assert [trip for trip in trips if trip != ("aggregate", "sessions")] == expected, operation


@pytest.mark.parametrize("token", ["<script>alert(1)</script>", "'><img src=x onerror=alert(1)>", "x" * 200])
async def test_the_page_escapes_the_links_parameters(client: Client, token: str) -> None:
    page = await client.http.get("/email", params={"token": token})
    assert page.status_code == 422  # as for a link that was used
    assert "<script>" not in page.text
    assert "<img" not in page.text
    refused = await client.http.post("/email", data={"token": token, "password": PASSWORD})
    assert refused.status_code == 422


@pytest.fixture
def keyring(settings: Settings) -> Any:
    keyring = Keyring(settings)
    yield keyring
    keyring.close()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


def with_clock(client: Client, database: Database) -> None:
    """The application's clock goes with the test's; it is set back when the test's own is."""
    client.app._app.state.database.clock.offset_ms = database.clock.offset_ms  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _clock(client: Client) -> Any:
    yield
    client.app._app.state.database.clock.offset_ms = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ['"}], "role": "operator', "<script>alert(1)</script>", "$where", "a.b", "O'Neill; DROP", "名前"]
)
async def test_a_name_is_plain_text(ada: Client, name: str) -> None:
    assert (await ada.ask(RENAME, name=name))["updateProfile"] == {"name": name}
    assert (await ada.ask("{ me { name } }"))["me"] == {"name": name}


@pytest.mark.parametrize("name", [{"$gt": ""}, ["Ada"], 5, True, None])
async def test_a_name_must_be_text(ada: Client, name: Any) -> None:
    assert (await ada.ask(RENAME, name=name)).code == "BAD_USER_INPUT"


async def test_notification_settings_change_by_part(ada: Client, database: Database) -> None:
    wanted = {"email": {"productUpdates": False}, "push": {"enabled": True}}
    answer = (await ada.ask(SETTINGS, input=wanted))["updateNotificationSettings"]["notificationSettings"]
    assert answer == {
        "email": {"productUpdates": False, "billingAlerts": True, "securityAlerts": True},
        "push": {"enabled": True, "productUpdates": True},
    }
    answer = await ada.ask(SETTINGS, input={"email": {"securityAlerts": False}})
    email = answer["updateNotificationSettings"]["notificationSettings"]["email"]
    assert email == {"productUpdates": False, "billingAlerts": True, "securityAlerts": False}
    log = await database.audit_logs.find({"action": "accounts.notifications.changed"})
    assert len(log) == 2


@pytest.mark.parametrize("wanted", [{"email": None}, {"email": {"productUpdates": None}}])
async def test_a_null_is_no_setting(ada: Client, database: Database, wanted: dict[str, Any]) -> None:
    assert (await ada.ask(SETTINGS, input=wanted)).code == "INVALID"
    (user,) = await database.users.find({})
    assert user.notification_settings == NotificationSettings()


@pytest.mark.slow
async def test_exchanging_a_stolen_token_buys_no_more_guesses(ada: Client) -> None:
    guess = 'mutation { reauthenticate(password: "a guess") }'
    codes = []
    for _ in range(6):
        codes.append((await ada.ask(guess)).code)
        ada.token = (await ada.ask("mutation { refreshSession { token } }"))["refreshSession"]["token"]
    assert codes == ["FORBIDDEN"] * 5 + ["TOO_MANY_ATTEMPTS"]
