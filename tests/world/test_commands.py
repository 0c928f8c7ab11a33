"""What people type, from public bug reports of systems like this one: the command as a process of its own.

Each row says where its rule comes from.
"""

import json

import pytest
from tests.cli.conftest import Own, Ximler, _forking, own, ximler  # noqa: F401 (fixtures)

STORED = [
    # (the address as another application stored it, the address as an operator types it)
    # Mongoose keeps capitals where the model has no `lowercase`.
    ("Ada@Example.com", "Ada@Example.com"),
    # RFC 5890: an A-label and its U-label are one domain.
    ("ada@xn--mnchen-3ya.de", "ada@münchen.de"),
    ("ada@xn--mnchen-3ya.de", "ADA@XN--MNCHEN-3YA.DE"),
    ("ada@münchen.de", "ada@xn--mnchen-3ya.de"),
    # Neither has a normal form: no domain, and a dot before the @-sign.
    ("root@localhost", "root@localhost"),
    ("ada.@example.com", "ada.@example.com"),
    # RFC 6532, 3.1: an address is composed, and macOS types it decomposed.
    ("jo\u0308rg@example.com", "jo\u0308rg@example.com"),
    ("jörg@example.com", "JO\u0308RG@example.com"),
]


@pytest.mark.slow
def test_an_account_is_found_by_the_address_that_another_application_stored(ximler: Ximler, own: Own) -> None:  # noqa: F811
    env, database = own
    made = ximler("users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", "--json", env=env,
                  stdin="correct horse battery staple\n")  # fmt: skip
    user = json.loads(made.stdout)["id"]
    for stored, typed in STORED:
        database.users.update_one({"email": {"$exists": True}}, {"$set": {"email": stored}})
        shown = ximler("usage", "show", typed, "--json", env=env)
        assert (shown.returncode, json.loads(shown.stdout)["email"]) == (0, stored), (typed, shown.stderr)
        found = ximler("users", "search", typed, "--json", env=env)
        assert [each["id"] for each in json.loads(found.stdout)["items"]] == [user], (stored, typed)
