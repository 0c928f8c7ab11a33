"""A Mongoose application writes a canvas while editors patch it."""

import pytest
from tests.mongoose.documents import their_minimal
from tests.mongoose.peer import Application

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import canvas
from ximler.projects.patches import Saver
from ximler.projects.projects import RevisionConflict


@pytest.mark.parametrize("way", ["updateOne", "findOneAndReplace"])
async def test_a_write_between_two_patches_is_a_revision_and_none_is_used_twice(
    app: Application, database: Database, way: str
) -> None:
    user = (await app.create("User", their_minimal()["User"]))["_id"]
    given = {**their_minimal()["Project"], "userId": user, "canvasData": {"elements": [{"id": "a", "x": 0}]}}
    project = (await app.create("Project", given))["_id"]
    ada = Actor(kind="user", via="session", user_id=user)
    saver = Saver(database)
    before = await saver.save(ada, project, {"client": "tab", "seq": 1, "set": {"a": {"x": 1}}})
    theirs = {"canvasData": {"elements": [{"id": "b"}]}}
    change = {"$set": theirs} if way == "updateOne" else given | theirs
    await app.call("Project", way, {"_id": project}, change)
    after = await saver.save(ada, project, {"client": "tab", "seq": 2, "set": {"a": {"x": 2}, "b": {"y": 3}}})
    assert (after.revision > before.revision, after.rejected) == (True, ["a"])
    now = await canvas.read(database, ada, project)
    assert (now.canvas_revision, now.canvas_data) == (after.revision, {"elements": [{"id": "b", "y": 3}]})
    with pytest.raises(RevisionConflict):
        await canvas.replace(database, ada, project, {}, based_on={before.revision})
