"""Mongoose populates the models' virtuals from documents of ours,
and we populate ours from documents of theirs."""

from typing import Any

from bson import ObjectId
from tests.mongoose.documents import our_full, our_minimal, their_minimal
from tests.mongoose.peer import Application

from ximler.billing import virtuals
from ximler.billing.plans import PlanMemory
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.schema.plan import Plan, PlanLimits


async def of_one_user(database: Database) -> tuple[ObjectId, dict[str, Any]]:
    """A user of ours with a plan, a subscription, two projects and a row of usage;
    and documents of another's."""
    ours = our_minimal()
    user, subscription, usage = ours["User"], ours["Subscription"], ours["Usage"]
    plan = Plan(
        id="team", name="Team", price=49, interval="MONTH", limits=PlanLimits(projects=9, storage=9, api_calls=9)
    )
    projects = [our_minimal()["Project"], our_full()["Project"]]
    subscription.user_id = usage.user_id = projects[0].user_id = projects[1].user_id = user.id
    subscription.plan_id = "team"
    for others in (our_minimal(), our_full()):
        for model, collection in (("Subscription", "subscriptions"), ("Project", "projects"), ("Usage", "usage")):
            await getattr(database, collection).insert(others[model])
    await database.users.insert(user)
    await database.plans.insert(plan)
    await database.subscriptions.insert(subscription)
    await database.projects.insert_many(projects)
    await database.usage.insert(usage)
    return user.id, {"subscription": subscription.id, "projects": {p.id for p in projects}, "usage": {usage.id}}


async def test_mongoose_populates_its_virtuals_from_documents_of_ours(app: Application, database: Database) -> None:
    user, mine = await of_one_user(database)
    populate = [{"path": "subscription", "populate": "plan"}, "projects", "usage"]
    found = await app.ask("populate", model="User", where={"_id": user}, populate=populate)
    assert found["subscription"]["_id"] == mine["subscription"]
    assert {project["_id"] for project in found["projects"]} == mine["projects"]
    assert {row["_id"] for row in found["usage"]} == mine["usage"]
    subscription = await app.ask("populate", model="Subscription", where={"userId": user}, populate=["plan", "userId"])
    assert subscription["plan"]["name"] == "Team"
    assert subscription["plan"]["limits"] == {"projects": 9, "storage": 9, "apiCalls": 9}
    assert subscription["userId"]["_id"] == user


async def test_mongoose_follows_every_reference_of_ours(app: Application, database: Database) -> None:
    user, mine = await of_one_user(database)
    documents = our_minimal()
    for model, collection in (
        ("Payment", "payments"),
        ("ApiKey", "api_keys"),
        ("Notification", "notifications"),
        ("AuditLog", "audit_logs"),
    ):
        documents[model].user_id = user
        if model == "Payment":
            documents[model].subscription_id = mine["subscription"]
        await getattr(database, collection).insert(documents[model])
        found = await app.ask("populate", model=model, where={"_id": documents[model].id}, populate=["userId"])
        assert found["userId"]["_id"] == user
    where = {"_id": documents["Payment"].id}
    paid = await app.ask("populate", model="Payment", where=where, populate=["subscriptionId"])
    assert paid["subscriptionId"]["_id"] == mine["subscription"]


async def test_we_populate_from_documents_of_theirs(app: Application, database: Database) -> None:
    user = (await app.create("User", their_minimal()["User"]))["_id"]
    theirs = {}
    for model in ("Subscription", "Project", "Usage"):
        theirs[model] = (await app.create(model, {**their_minimal()[model], "userId": user}))["_id"]
    subscription = (await virtuals.subscription_by_user(database, [user]))[user]
    assert subscription.id == theirs["Subscription"]
    plan = (await PlanMemory(database, Feed(database)).by_id([subscription.plan_id]))["pro"]
    assert plan.name == "Pro"
    assert [project.id for project in (await database.projects.find_by("userId", [user]))[user]] == [theirs["Project"]]
    assert [row.id for row in (await database.usage.find_by("userId", [user]))[user]] == [theirs["Usage"]]
