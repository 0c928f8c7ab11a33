"""A page of settings, for people who are signed in with the session's cookie."""

from typing import Annotated

import msgspec
from litestar import Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.enums import RequestEncodingType
from litestar.params import Body

from ximler.http.authentication import Caller, signed_in
from ximler.http.pages import page, page_of
from ximler_bookmarks import bookmarks

_PATH = "/bookmarks/settings"


class Choice(msgspec.Struct, frozen=True):
    reminders: str = ""  # browsers leave out a box that is not ticked


@get(_PATH, **signed_in(), **page_of("Settings of bookmarks", tag="bookmarks", _401="Not signed in"))
async def show(state: State, caller: NamedDependency[Caller]) -> Response[str]:
    return _form(on=await bookmarks.reminds(state.database, caller.actor.require_user()))


@post(_PATH, **signed_in(), **page_of("Change settings of bookmarks", tag="bookmarks", _401="Not signed in"))
async def change(
    state: State,
    caller: NamedDependency[Caller],
    data: Annotated[Choice, Body(media_type=RequestEncodingType.URL_ENCODED)],
) -> Response[str]:
    on = bool(data.reminders)
    await bookmarks.set_reminders(state.database, caller.actor, on=on)
    return _form(on=on)


def _form(*, on: bool) -> Response[str]:
    return page("ximler_bookmarks/settings.html", "Bookmarks", on=on)


routes = (show, change)
