"""`ximler usage import`, typed as an operator would."""

import json
from datetime import UTC, datetime


def test_a_file_of_events_counts_once_and_invalid_lines_are_named(ximler, own, tmp_path):
    env, database = own
    made = ximler(
        "users", "create", "--name", "A", "--email", "a@example.com", "--password-stdin", "--json",
        env=env, stdin="correct horse battery\n",
    )  # fmt: skip
    user = json.loads(made.stdout)["id"]
    now = datetime.now(UTC).isoformat()
    lines = [json.dumps({"id": str(n), "at": now, "userId": user, "source": "gateway"}) for n in range(50)]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(lines) + "\n")
    first = ximler("usage", "import", str(file), env=env)
    assert (first.returncode, first.stdout) == (0, "50 events recorded, 0 already known, 0 refused.\n")
    [row] = database.usage.find({})
    assert row["amount"] == 50
    assert database.quotas.find_one({})["ingested"] == 50
    again = ximler("usage", "import", "-", env=env, stdin=file.read_text() + '{"id": "x"}\n')
    assert (again.returncode, again.stdout) == (1, "0 events recorded, 50 already known, 1 refused.\n")
    assert again.stderr == "line 51: Object missing required field 'at'\n"
    told = json.loads(ximler("usage", "import", "-", "--json", env=env, stdin="nonsense").stdout)
    assert (told["accepted"], told["refused"][0]["line"]) == (0, 1)
