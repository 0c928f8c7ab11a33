"""A drawing of Ada's, and what is stored of it."""

from collections import Counter
from typing import Any, NamedTuple

import bson
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import canvas, versions
from ximler.projects.patches import Outcome, Saver
from ximler.schema.canvas_part import CANVAS_PARTS
from ximler.schema.canvas_version import CANVAS_CONTENTS

TEXT = "x" * 300


def shapes(count: int) -> dict[str, Any]:
    return {"elements": [{"id": f"s{n}", "x": n, "text": TEXT} for n in range(count)], "appState": {"zoom": 1}}


class State(NamedTuple):
    revision: int
    canvas: Any
    versions: list[ObjectId]
    base: ObjectId | None


class Drawing:
    def __init__(self, database: Database, ada: Actor, project: ObjectId) -> None:
        self.database, self.ada, self.id = database, ada, project
        self.saver = Saver(database)
        self._seq = 0

    async def save(self, client: str = "tab", **change: Any) -> Outcome:
        self._seq += 1
        return await self.saver.save(self.ada, self.id, {"client": client, "seq": self._seq, **change})

    async def read(self) -> dict[str, Any]:
        """The canvas, after checking that its JSON in parts is the same."""
        revision, text = await canvas.read_json(self.database, self.ada, self.id)
        found = await canvas.read(self.database, self.ada, self.id)
        if found.canvas_revision == revision:
            assert (text if isinstance(text, bytes) else b"".join(text)) == canvas.encoded(found.canvas_data)
        data: dict[str, Any] = found.canvas_data
        return data

    async def record(self, name: str) -> Any:
        return next((each for each in (await self.read())["elements"] if each["id"] == name), None)

    async def stored(self) -> dict[str, Any]:
        found = await self.database.raw["projects"].find_one({"_id": self.id})
        assert found is not None
        return found

    async def state(self) -> State:
        found = await canvas.read(self.database, self.ada, self.id)
        kept = await versions.page(self.database, self.ada, self.id)
        base = (await self.stored()).get("canvasBase") or {}
        return State(found.canvas_revision, found.canvas_data, [each.id for each in kept.items], base.get("id"))

    async def expect_whole(self) -> None:
        """No part is missing or left over, and the gauge has what the project says."""
        raw = await self.stored()
        contents = await self.database[CANVAS_CONTENTS].find({"projectId": self.id})
        used = {each.id: each.parts for each in contents if each.parts}
        if base := raw.get("canvasBase"):
            used[base["id"].binary] = base["parts"]
        parts = Counter(part.id[:-2] for part in await self.database[CANVAS_PARTS].find({"projectId": self.id}))
        assert parts == used
        gauge = await self.database.raw["gauges"].find_one({"_id": self.ada.user_id})
        assert gauge is not None
        assert gauge["storageBytes"] == raw["storageSize"] + raw.get("storageRoom", 0)

    async def expect_exact(self) -> None:
        """`storageSize` is measured anew from what is stored; the gauge has it."""
        raw = await self.stored()
        size = len(bson.encode({"v": raw["canvasData"] or {}})) - 8
        if raw["canvasData"] is None and raw.get("canvasBase"):
            size = raw["canvasBase"]["bytes"]
            size += len(bson.encode({"v": raw["canvasTail"]})) - 8 if "canvasTail" in raw else 0
        contents = await self.database[CANVAS_CONTENTS].find({"projectId": self.id})
        total = size + sum(each.stored_bytes for each in contents)
        total += sum(len(bson.encode(raw[name])) for name in ("settings", "canvasLog", "canvasClients") if name in raw)
        assert raw["storageSize"] == total
        await self.expect_whole()
