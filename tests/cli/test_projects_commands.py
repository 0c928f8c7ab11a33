"""`ximler projects` as an operator types it."""

import json

DRAWING = {"type": "excalidraw", "version": 2, "elements": [{"id": "a", "x": 1.5, "text": "é"}], "appState": {}}


def test_a_canvas_goes_in_and_out_and_back_to_a_version(ximler, own, tmp_path):
    env, _ = own
    made = ximler(
        "users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", env=env,
        stdin="seven violet anchors drift",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    file = tmp_path / "plan.excalidraw"
    file.write_text(json.dumps(DRAWING, indent=2))
    imported = ximler("projects", "import", "ada@example.com", str(file), "--name", "Plan", "--json", env=env)
    assert imported.returncode == 0, imported.stderr
    project = json.loads(imported.stdout)["id"]
    assert ximler("projects", "export", project, env=env).stdout == file.read_text()

    replaced = ximler("projects", "import", "ada@example.com", "-", "--into", project, env=env, stdin='{"b": 1}')
    assert "revision 1" in replaced.stdout
    assert ximler("projects", "export", project, env=env).stdout == '{"b": 1}'
    listed = json.loads(ximler("projects", "versions", project, "--json", env=env).stdout)["items"]
    assert [each["name"] for each in listed] == ["before an import"]
    assert ximler("projects", "restore", project, listed[0]["id"], env=env).returncode == 0
    out = tmp_path / "out.json"
    ximler("projects", "export", project, "-o", str(out), env=env)
    assert out.read_bytes() == file.read_bytes()
    assert "Plan" in ximler("projects", "list", "ada@example.com", env=env).stdout

    twice = ximler(
        "projects", "import", "ada@example.com", "-", "--name", "n", env=env, stdin='{"a": {"b": 1, "b": 2}}'
    )
    assert twice.returncode == 2
    assert "/a/b in the file is a key that its object has twice" in twice.stderr


def test_the_trash_is_listed_restored_and_emptied(ximler, own):
    env, _ = own
    made = ximler(
        "users", "create", "--name", "Bea", "--email", "bea@example.com", "--password-stdin", env=env,
        stdin="seven violet anchors drift",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    drawn = ximler("projects", "import", "bea@example.com", "-", "--name", "Gone", "--json", env=env, stdin="{}")
    project = json.loads(drawn.stdout)["id"]
    assert "is empty" in ximler("projects", "trash", "bea@example.com", env=env).stdout
    assert ximler("projects", "trash", "bea@example.com", "--restore", project, env=env).returncode != 0
    assert json.loads(ximler("projects", "trash", "bea@example.com", "--empty", "--json", env=env).stdout) == {
        "purged": 0
    }
