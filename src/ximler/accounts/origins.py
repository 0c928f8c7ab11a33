"""Where sign-ins come from: the city, from a GeoIP file that the operator supplies
(`XIMLER_GEOIP_FILE`), and the browser.

An account remembers the last few of both (`credentials.places`, `credentials.browsers`); programs without a
name count as one browser. A sign-in from elsewhere is reported by mail, from a new place in the inbox as
well; never the first one, and never for a device that shows its token. Ten are reported in 24 hours, so that
ever-new names do not send mails without end. A mail has no text of the caller's.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from ximler.accounts import notices
from ximler.core.clock import to_ms
from ximler.core.settings import Settings, SettingsError
from ximler.database import Database
from ximler.notifications import inbox
from ximler.schema.credential import Credential
from ximler.schema.user import User

__all__ = ["check", "place_of", "recognise"]

_KEPT = 10  # of each
_REPORTED, _DAY_MS = 10, 86_400_000
_INSTALL = "install it with `pip install 'ximler[geoip]'`"


def check(settings: Settings) -> None:
    """Raises SettingsError if the GeoIP file cannot be used."""
    if settings.geoip_file is None:
        return
    try:
        _reader(settings.geoip_file)
    except ImportError as error:
        raise SettingsError(f"XIMLER_GEOIP_FILE needs the package maxminddb: {_INSTALL}") from error
    except (OSError, RuntimeError) as error:  # the library's own error is a RuntimeError
        raise SettingsError(f"XIMLER_GEOIP_FILE: {settings.geoip_file} cannot be read: {error}") from error


def place_of(settings: Settings, address: str | None) -> str | None:
    """The city of an address, `Berlin, Germany`, or its country alone.
    None if the file has neither, or without one."""
    if settings.geoip_file is None or address is None:
        return None
    try:
        found: Any = _reader(settings.geoip_file).get(address)
    except ValueError:  # no address, or IPv6 in a file of IPv4
        return None
    if not isinstance(found, dict):
        return None
    names = [found.get(part, {}).get("names", {}).get("en") for part in ("city", "country")]
    return ", ".join(name for name in names if name) or None


async def recognise(
    transaction: Database,
    user: User,
    credential: Credential | None,
    *,
    place: str | None,
    browser: str,
    known_device: bool,
) -> dict[str, Any]:
    """The origins that a credential remembers after a sign-in.
    Reports one from elsewhere, in its transaction.

    No command but those of the notices.
    """
    places = credential.places if credential else []
    browsers = credential.browsers if credential else []
    new_place = place is not None and place not in places
    new_browser = browser not in browsers
    remembered: dict[str, Any] = {}
    if new_place:
        remembered["places"] = [*places, place][-_KEPT:]
    if new_browser:
        remembered["browsers"] = [*browsers, browser][-_KEPT:]
    if not remembered:
        return {}
    travelled = new_place and bool(places)
    now_ms = to_ms(transaction.clock.now())
    before = [at for at in credential.reported if at > now_ms - _DAY_MS] if credential else []
    reported = (travelled or (new_browser and bool(browsers) and not known_device)) and len(before) < _REPORTED
    if reported:
        remembered["reported"] = [*before, now_ms]
    if reported and travelled:
        await _notify_inbox(transaction, user, place)
    if reported:
        device = "" if known_device or not new_browser else "a new device"
        await notices.notify(
            transaction, user.id, "new_sign_in", origin=" in ".join(part for part in (device, place) if part)
        )
    return remembered


async def _notify_inbox(transaction: Database, user: User, place: str | None) -> None:
    message = f"Your account was used from {place}. If this was not you, change your password and end the session."
    await inbox.notify(transaction, user, "SYSTEM", "A sign-in from a new place", message)


@lru_cache(maxsize=2)
def _reader(path: Path) -> Any:
    """The file in memory. A new one is read after a restart."""
    import maxminddb  # here, because few need it

    return maxminddb.open_database(path)
