"""A database on its own server, with commands that fail on demand."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pymongo import AsyncMongoClient

from ximler.database import Database

__all__ = ["UNMAPPED", "Failing"]

# Codes of the server that mean nothing to Ximler: not that the database is away, nor that the input is wrong.
UNMAPPED = (1, 8, 26, 59, 115, 8000)


class Failing:
    """`database`, and the means to make its commands fail.
    The fail point is the server's: one test at a time."""

    def __init__(self, database: Database, admin: AsyncMongoClient[dict[str, Any]]) -> None:
        self.database = database
        self._admin = admin

    @asynccontextmanager
    async def fail(
        self, *commands: str, times: int = 1, collection: str | None = None, **how: Any
    ) -> AsyncIterator[Callable[[], Awaitable[int]]]:
        """Have the next `times` of these commands fail:
        `errorCode=8000`, `closeConnection=True`, `writeConcernError={…}`.

        `blockConnection=True, blockTimeMS=…` delays them. Only those of Ximler fail, on `collection` where it
        is given. The block is given a function that returns how many have failed.
        """
        how |= {"failCommands": list(commands), "appName": self.database.client.options.pool_options.appname}
        if collection is not None:
            how["namespace"] = f"{self.database.name}.{collection}"
        before = (await self._set({"times": times}, how))["count"]

        async def hits() -> int:
            point = await self._admin.admin.command({"getParameter": 1, "failpoint.failCommand": 1})
            return int(point["failpoint.failCommand"]["timesEntered"]) - int(before)

        try:
            yield hits
        finally:
            await self._set("off", {})

    async def _set(self, mode: Any, data: dict[str, Any]) -> dict[str, Any]:
        return await self._admin.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})
