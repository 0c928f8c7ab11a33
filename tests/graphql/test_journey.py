"""The journey of a new customer, from registration to sign-out, over the real application."""

import pytest
from tests.serving import PASSWORD, Client


@pytest.mark.slow
async def test_a_person_registers_creates_projects_up_to_their_limit_finds_them_and_signs_out(client: Client) -> None:
    token = await client.register("Ada@Example.com", name="  Ada Lovelace ")
    assert (await client.sign_in("ada@example.com")).code == "BAD_CREDENTIALS"
    confirmed = await client.confirm(token)
    assert confirmed["confirmEmail"]["user"]["email"] == "ada@example.com"
    signed_in = await client.sign_in(" ADA@example.com ", PASSWORD)
    assert signed_in["signIn"]["user"]["id"] == confirmed["confirmEmail"]["user"]["id"]

    me = (await client.ask(ME))["me"]
    assert me["name"] == "Ada Lovelace"
    assert me["email"] == "ada@example.com"
    assert me["emailVerified"] is True
    assert me["subscription"] is None
    assert me["projects"] == {"nodes": [], "pageInfo": {"hasNextPage": False, "endCursor": None}}
    assert [(u["resource"], u["used"], u["limit"], u["remaining"]) for u in me["usage"]] == [
        ("projects", 0, 3, 3),
        ("storage", 0, 1_000_000_000, 1_000_000_000),
        ("apiCalls", 0, 1000, 1000),
    ]
    plans = (await client.ask("{ plans { id priceMinor currency interval limits { projects storage apiCalls } } }"))[
        "plans"
    ]
    assert [(p["id"], p["priceMinor"], p["limits"]["projects"]) for p in plans] == [
        ("free", 0, 3),
        ("pro", 2900, 100),
        ("enterprise", 9900, -1),
    ]

    canvas = {"shapes": [{"kind": "circle", "r": 2.5}], "title": "Größe"}
    bridge = (await client.create("Bridge of Sighs", description="Venice", canvasData=canvas))["createProject"]
    tower = (await client.create("Tower bridge"))["createProject"]
    await client.create("Crystal Palace")
    refused = await client.create("One too many")
    assert refused.code == "QUOTA_EXCEEDED"
    assert refused.data is None
    assert "projects" in refused.fields
    assert "delete a project" in refused.errors[0]["message"]

    found = await client.ask('{ projects(search: "bri") { nodes { name } } }')
    assert [node["name"] for node in found["projects"]["nodes"]] == ["Tower bridge", "Bridge of Sighs"]
    seen = await client.ask(
        "query ($id: ID!) { project(id: $id) { name description canvasData settings } }", id=bridge["id"]
    )
    assert seen["project"] == {"name": "Bridge of Sighs", "description": "Venice", "canvasData": canvas, "settings": {}}

    renamed = await client.ask(UPDATE, id=tower["id"], input={"name": "London Tower", "description": None})
    assert renamed["updateProject"]["name"] == "London Tower"
    gone = await client.ask("mutation ($id: ID!) { deleteProject(id: $id) { deletedAt } }", id=bridge["id"])
    assert gone["deleteProject"]["deletedAt"] is not None
    assert (await client.ask("query ($id: ID!) { project(id: $id) { name } }", id=bridge["id"])).code == "NOT_FOUND"
    assert not (await client.create("In its place")).errors
    back = "mutation ($id: ID!) { restoreProject(id: $id) { deletedAt canvasData } }"
    assert (await client.ask(back, id=bridge["id"])).code == "QUOTA_EXCEEDED"
    await client.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=tower["id"])
    restored = await client.ask(back, id=bridge["id"])
    assert restored["restoreProject"] == {"deletedAt": None, "canvasData": canvas}

    usage = (await client.ask("{ usage { resource used remaining } }"))["usage"]
    assert usage[0] == {"resource": "projects", "used": 3, "remaining": 0}
    stored = await client.ask("{ projects { nodes { storageSize } } trash { nodes { name storageSize } } }")
    assert [node["name"] for node in stored["trash"]["nodes"]] == ["London Tower"]
    sizes = [node["storageSize"] for found in ("projects", "trash") for node in stored[found]["nodes"]]
    assert usage[1]["used"] == sum(sizes)

    assert (await client.ask("mutation ($id: ID!) { purgeProject(id: $id) }", id=tower["id"]))["purgeProject"] is True
    assert (await client.ask("mutation { emptyTrash }"))["emptyTrash"] == 0
    usage = (await client.ask("{ usage { used } }"))["usage"]
    assert usage[1]["used"] == sum(sizes[:3])

    assert (await client.ask("mutation { signOut }"))["signOut"] is True
    after = await client.ask("{ me { id } }")
    assert (after.status, after.code) == (401, "SESSION_EXPIRED")
    client.token = None
    assert (await client.ask("{ me { id } }")).code == "UNAUTHENTICATED"


ME = """{ me {
  name email emailVerified
  subscription { status plan { id name } }
  projects { nodes { id name } pageInfo { hasNextPage endCursor } }
  usage { resource used limit remaining periodStart periodEnd }
} }"""
UPDATE = (
    "mutation ($id: ID!, $input: UpdateProjectInput!) { updateProject(id: $id, input: $input) { name description } }"
)


async def test_a_list_is_read_to_its_end_page_by_page(client: Client, ada: Client) -> None:
    for n in range(3):
        await ada.create(f"P{n}")
    names, after = [], None
    for _ in range(3):
        page = (await ada.ask(PAGE, first=1, after=after))["projects"]
        names += [edge["node"]["name"] for edge in page["edges"]]
        after = page["pageInfo"]["endCursor"]
        assert page["edges"][0]["cursor"] == after
        assert page["pageInfo"]["hasNextPage"] == (len(names) < 3)
    assert names == ["P2", "P1", "P0"]
    assert (await ada.ask(PAGE, first=1, after=after))["projects"]["edges"] == []


PAGE = """query ($first: Int, $after: String) { projects(first: $first, after: $after) {
  edges { cursor node { name } } pageInfo { hasNextPage endCursor } } }"""
