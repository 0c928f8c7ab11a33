"""The resolvers of graphql.graphql."""

from ximler.core.ids import decode_cursor
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler_bookmarks import bookmarks
from ximler_bookmarks.schema import Bookmark

resolvers = Resolvers()


@resolvers.query("bookmarks")
async def list_bookmarks(ctx: Context, first: int | None = None, after: str | None = None) -> Connection[Bookmark]:
    position = None if after is None else decode_cursor(after)
    return Connection(await bookmarks.page(ctx.database, ctx.actor, first=page_size(first), after=position))


@resolvers.mutation("addBookmark")
async def add_bookmark(ctx: Context, title: str, url: str) -> Bookmark:
    return await bookmarks.add(ctx.database, ctx.actor, title=title, url=url)
