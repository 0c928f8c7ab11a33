"""A customer's search: by the beginning of words, in any order, and only among their own."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.core.actor import Actor
from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.projects import finding, projects, search
from ximler.schema.project import Project


async def names(database: Database, actor: Actor, query: str) -> set[str]:
    return {found.name for found in (await projects.page(database, actor, query=query, first=100)).items}


@pytest.fixture
async def library(database: Database, ada: Actor, bob: Actor) -> Database:
    for owner in (ada, bob):
        assert owner.user_id is not None
        suffix = "" if owner is ada else " of Bob"
        texts = [
            ("Bridge" + suffix, "of sighs, Venice"),
            ("Tower Bridge" + suffix, None),
            ("Größenwahn" + suffix, "ÉTUDE no. 5"),
            ("快速 prototype" + suffix, "عربى"),
            ("🚀" + suffix, "a+b → c.d*"),
            ("ﬁle_name-v2" + suffix, "𝐁old Ⓐ ½"),
        ]
        await database.projects.insert_many(
            Project(user_id=owner.user_id, name=n, description=d, search_terms=search.terms(n, d)) for n, d in texts
        )
    return database


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("bridge", {"Bridge", "Tower Bridge"}),
        ("BRI", {"Bridge", "Tower Bridge"}),
        ("bri tow", {"Tower Bridge"}),
        ("tow bri", {"Tower Bridge"}),
        ("ridge", set()),
        ("ven", {"Bridge"}),
        ("sighs bridge of", {"Bridge"}),
        ("grossen", {"Größenwahn"}),
        ("größenwahn", {"Größenwahn"}),
        ("etude", {"Größenwahn"}),
        ("5", {"Größenwahn"}),
        ("快", {"快速 prototype"}),
        ("عر", {"快速 prototype"}),
        ("file name", {"ﬁle_name-v2"}),
        ("v2", {"ﬁle_name-v2"}),
        ("bold a", {"ﬁle_name-v2"}),
        ("🚀", {"🚀"}),
        ("→", {"🚀"}),
        ("+", {"🚀"}),
        ("*", {"🚀"}),
        ("(", set()),
        (".*", set()),
        ("b.*", {"Bridge", "Tower Bridge", "🚀", "ﬁle_name-v2"}),
        ("^bridge$", {"Bridge", "Tower Bridge"}),
        ("(a+)+$", {"🚀", "ﬁle_name-v2"}),
        ("\\", set()),
        ("$where", set()),
        ("'; drop", set()),
        ("\ufdfa", set()),  # one character that decomposes into eighteen
    ],
)
async def test_words_are_found_by_their_beginning(library: Database, ada: Actor, query: str, found: set[str]) -> None:
    assert await names(library, ada, query) == found


@pytest.mark.parametrize(
    ("name", "queries", "others"),
    [
        (
            "プロジェクト計画",
            ["計画", "計", "画", "プロジェクト", "ジェクト計", "プロジェクト 計画"],
            ["画計", "プロ画"],
        ),
        ("iPhone用ケース", ["iphone", "ケース", "用ケース", "iPhone用"], ["phone"]),
        ("快速原型", ["原型", "快速", "型"], ["速快"]),
        ("Łódź plan", ["lodz", "łódź", "ŁÓD", "lod pla"], ["odz"]),
        ("Øre Đà Þing Æon Œuvre Ħal", ["ore da", "đà", "thing", "aeon", "oeuvre", "hal"], []),
        ("ISPARTA ısparta İzmir", ["isparta", "ısparta", "izmir", "İZMİR"], []),
        ("Straße", ["strasse", "STRASSE", "straße"], []),
        ("हिन्दी मुंबई", ["हिन्दी", "हिन्", "मुं"], ["हद", "दी"]),
        ("ภาษาไทยดี", ["ไทย", "ภาษา", "ดี"], ["ไดี"]),
        ("עִבְרִית", ["עברית", "עִבְ"], []),
        ("한국어 프로젝트", ["한국", "프로젝트"], ["국어"]),
    ],
)
async def test_scripts_and_letters_of_the_world_are_found(
    database: Database, ada: Actor, name: str, queries: list[str], others: list[str]
) -> None:
    await projects.create(database, ada, name=name)
    for query in queries:
        assert await names(database, ada, query) == {name}, query
    for query in others:
        assert await names(database, ada, query) == set(), query


@pytest.mark.parametrize(("name", "query"), [("Łódź", "łódź"), ("プロジェクト計画", "計画"), ("हिन्दी", "हिन्दी")])
async def test_a_project_without_terms_is_found_by_its_text_as_it_is(
    database: Database, ada: Actor, name: str, query: str
) -> None:
    await database.raw["projects"].insert_one({"userId": ada.user_id, "name": name})
    assert await names(database, ada, query) == {name}


@pytest.mark.parametrize("query", ["", " ", "\n\t"])
async def test_an_empty_search_is_no_search(library: Database, ada: Actor, query: str) -> None:
    assert len(await names(library, ada, query)) == 6


@pytest.mark.parametrize("query", ["x" * 201, "x" * 10_000, "a\0b", "\0"])
async def test_a_search_that_cannot_be_one_is_refused_by_name(library: Database, ada: Actor, query: str) -> None:
    with pytest.raises(Invalid) as refused:
        await projects.page(library, ada, query=query)
    assert list(refused.value.fields) == ["search"]


async def test_projects_of_another_application_are_found_by_their_texts(
    database: Database, ada: Actor, bob: Actor
) -> None:
    await database.raw["projects"].insert_many(
        [
            {"userId": ada.user_id, "name": "Their BRIDGE (old)", "description": "wood"},
            {"userId": ada.user_id, "name": "no description", "description": None},
            {"userId": bob.user_id, "name": "Bob's bridge"},
        ]
    )
    assert await names(database, ada, "bridge") == {"Their BRIDGE (old)"}
    assert await names(database, ada, "wood bri") == {"Their BRIDGE (old)"}
    assert await names(database, ada, "(") == {"Their BRIDGE (old)"}
    assert await names(database, ada, "wood stone") == set()


async def test_changed_projects_are_found_by_their_new_texts(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="Castle", description="in Spain")
    await projects.update(database, ada, made.id, {"name": "Palace"})
    assert await names(database, ada, "castle") == set()
    assert await names(database, ada, "pal spa") == {"Palace"}
    await projects.update(database, ada, made.id, {"description": None})
    assert await names(database, ada, "spain") == set()
    await projects.delete(database, ada, made.id)
    assert await names(database, ada, "palace") == set()


async def test_a_search_is_paged_like_a_list(database: Database, ada: Actor) -> None:
    assert ada.user_id is not None
    for n in range(5):
        await database.projects.insert(Project(user_id=ada.user_id, name=f"word {n}", search_terms=["word", str(n)]))
    first = await projects.page(database, ada, query="wor", first=3)
    assert first.end_cursor is not None
    rest = await projects.page(database, ada, query="wor", first=3, after=decode_cursor(first.end_cursor))
    assert [p.name for p in [*first.items, *rest.items]] == [f"word {n}" for n in reversed(range(5))]
    assert not rest.has_next


async def test_names_come_before_descriptions_and_newer_ones_first(
    database: Database, ada: Actor, bob: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another application wrote, on every page, and whichever index is read;
    a few matches by one command."""
    texts = [
        ("Tower bridge", None),
        ("Plan", "a bridge"),
        ("Bridge", "x"),
        ("bridgehead", None),
        ("Note", "old bridge"),
    ]
    for owner in (bob, ada):
        assert owner.user_id is not None
        await database.projects.insert_many(
            Project(user_id=owner.user_id, name=n, description=d, search_terms=search.terms(n, d)) for n, d in texts
        )
    await database.raw["projects"].insert_one({"userId": ada.user_id, "name": "my bridge"})
    expected = ["bridgehead", "Bridge", "Tower bridge", "Note", "Plan", "my bridge"]
    for few in (600, 1):
        monkeypatch.setattr(finding, "_FEW", few)
        for size in (1, 2, 3, 4, 10):
            found: list[str] = []
            after = None
            while True:
                with round_trips() as trips:
                    page = await projects.page(database, ada, query="bri", first=size, after=after)
                assert few == 1 or len(trips) == (1 if after is None else 2)
                found += [each.name for each in page.items]
                if not page.has_next:
                    break
                assert len(page.items) == size
                after = decode_cursor(page.end_cursor or "")
            assert found == expected, (few, size)
    assert (await projects.page(database, ada, query="bridge plan")).items[0].name == "Plan"


@pytest.mark.parametrize("query", ["bri", "bri tow", "nothing", "nothing bri"])
async def test_a_search_of_few_projects_is_one_command(library: Database, ada: Actor, query: str) -> None:
    with round_trips() as trips:
        await projects.page(library, ada, query=query)
    assert trips == [("aggregate", "projects")]


async def test_an_unreadable_project_takes_no_place_on_a_page(database: Database, ada: Actor) -> None:
    words = ["=bridge", "bridge"]
    await database.raw["projects"].insert_many(
        (
            {"userId": ada.user_id, "name": {} if n == 1 else f"bridge {n}", "searchTerms": words, "createdAt": EPOCH}
            for n in range(4)
        ),
        bypass_document_validation=True,
    )
    page = await projects.page(database, ada, query="bridge", first=3)
    assert [each.name for each in page.items] == ["bridge 3", "bridge 2", "bridge 0"]
    assert not page.has_next


@pytest.mark.parametrize("few", [600, 1])
async def test_a_search_keeps_to_the_other_filters(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(finding, "_FEW", few)
    await database.raw["projects"].insert_many(
        {"userId": ada.user_id, "name": f"Bridge {n}", "searchTerms": ["=bridge", "bridge"]}
        | ({"location": {"type": "Point", "coordinates": [n, 1]}} if n else {})
        | ({"tags": ["old"], "starred": True} if n == 2 else {})
        | ({"deletedAt": EPOCH} if n == 3 else {})
        for n in range(5)
    )

    async def found(**wanted: Any) -> list[str]:
        return [each.name for each in (await projects.page(database, ada, query="bri", **wanted)).items]

    assert await found() == ["Bridge 4", "Bridge 2", "Bridge 1", "Bridge 0"]
    assert await found(tagged=["old"]) == await found(starred=True) == ["Bridge 2"]
    assert await found(within={"box": {"west": 0, "south": 0, "east": 2, "north": 2}}) == ["Bridge 2", "Bridge 1"]


def test_terms_are_bounded_in_number_and_length() -> None:
    words = search.terms(" ".join(f"w{n}" for n in range(5000)), "x" * 5000)
    assert len(words) == search.MAX_TERMS
    assert search.terms(None, "x" * 5000) == ["x" * 40]
    assert search.terms(None, "") == []
    assert search.terms("b a b A", "a c") == ["=b", "=a", "b", "a", "c"]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_finds_itself(text: str) -> None:
    """Every word of a query made of a project's own name begins a word of it."""
    terms = search.terms(text)
    for condition in _words(search.condition(text)):
        assert any(term.startswith(condition) for term in terms)
    assert search.terms(text.upper().lower()) or not terms


def _words(condition: dict[str, Any]) -> list[str]:
    """What the first branch looks for, unescaped: words have nothing to escape."""
    first = condition.get("$or", [{}])[0]
    return [part["searchTerms"]["$regex"].removeprefix("^") for part in first.get("$and", [])]
