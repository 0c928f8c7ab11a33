"""The audit log as customers and operators see it over GraphQL."""

from bson import ObjectId
from tests.serving import Client

from ximler.database import Database

LOG = """query ($user: ID, $action: String, $after: String) {
  auditLog(userId: $user, action: $action, first: 2, after: $after) {
    nodes { action resource resourceId userId address details } pageInfo { hasNextPage endCursor }
  }
}"""
HISTORY = "{ securityHistory(first: 50) { nodes { action actor via address userAgent createdAt } } }"


async def test_users_see_their_actions_newest_first(ada: Client) -> None:
    made = (await ada.create("Bridge"))["createProject"]["id"]
    await ada.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=made)
    nodes = (await ada.ask(HISTORY))["securityHistory"]["nodes"]
    assert [node["action"] for node in nodes][:2] == ["projects.project.deleted", "projects.project.created"]
    assert {node["address"] for node in nodes[:2]} == {"192.0.2.1"}
    assert nodes[0]["actor"] == "user"


async def test_operators_search_the_whole_log(ada: Client, client: Client, database: Database) -> None:
    await ada.create("Bridge")
    ada_id = (await ada.ask("{ me { id } }"))["me"]["id"]
    await client.join("op@example.com")
    op_id = ObjectId((await client.ask("{ me { id } }"))["me"]["id"])
    assert (await client.ask(LOG)).code == "FORBIDDEN"
    await database.raw["credentials"].update_one({"_id": op_id}, {"$set": {"role": "operator"}}, upsert=True)
    await client.sign_in("op@example.com")
    page = (await client.ask(LOG, user=ada_id, action="projects.project.created"))["auditLog"]
    assert [(node["resource"], node["userId"], node["details"]["after"]) for node in page["nodes"]] == [
        ("projects", ada_id, {"name": "Bridge"})
    ]
    first = (await client.ask(LOG))["auditLog"]
    assert first["nodes"][0]["action"] == "audit.log.read"
    assert first["nodes"][0]["userId"] == ada_id
    assert "_audit" not in first["nodes"][1]["details"]
    second = (await client.ask(LOG, after=first["pageInfo"]["endCursor"]))["auditLog"]
    assert second["nodes"]
    assert not [node for node in second["nodes"] if node in first["nodes"]]
    history = (await ada.ask(HISTORY))["securityHistory"]["nodes"]
    assert "audit.log.read" not in {node["action"] for node in history}
