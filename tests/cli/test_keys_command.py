"""`ximler keys` as an operator types it, and three processes that hear at once of what it takes back."""

import contextlib
import json
import re
import socket
import threading
import time

from pymongo.uri_parser import parse_uri

WHO = "{ me { email } }"
WITHIN_S = 1.0


def make_ada(ximler, env):
    password = "seven violet anchors drift"
    made = ximler(
        "users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", env=env, stdin=password
    )
    assert made.returncode == 0, made.stderr


def made_for_processes(ximler, empty):
    env, database = empty
    ximler("db", "init", env=env)
    make_ada(ximler, env)
    return {**env, "XIMLER_WORKER": "false"}, database


def create(ximler, env, *more):
    made = ximler(
        "keys", "create", "ada@example.com", "--name", "ci", "--scope", "account:read", *more, "--json", env=env
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_an_operator_makes_lists_rotates_and_revokes(ximler, own):
    env, database = own
    make_ada(ximler, env)
    assert "no keys" in ximler("keys", "list", "ada@example.com", env=env).stdout
    made = create(ximler, env, "--days", "30", "--from", "10.0.0.0/8")
    assert made["secret"].startswith("xim_")
    assert (made["state"], made["allowedAddresses"]) == ("ACTIVE", ["10.0.0.0/8"])
    rotated = ximler("keys", "rotate", made["id"], "--grace", "1", env=env)
    assert rotated.stdout.startswith("xim_")
    assert rotated.stdout.strip() != made["secret"]
    revoked = ximler("keys", "revoke", made["id"], env=env)
    assert revoked.stdout == f"ci (…{made['hint']}) is revoked.\n"
    listed = ximler("keys", "list", "ada@example.com", env=env).stdout
    assert "REVOKED" in listed
    assert "ACTIVE" in listed
    actions = [entry["action"] for entry in database.auditlogs.find({"resource": "apikeys"}).sort("createdAt")]
    assert actions == ["apikeys.key.created", "apikeys.key.rotated", "apikeys.key.revoked"]


def test_invalid_input_is_reported_and_changes_nothing(ximler, own):
    env, database = own
    make_ada(ximler, env)
    for arguments, code, said in (
        (
            ("create", "nobody@example.com", "--name", "x", "--scope", "account:read"),
            5,
            "There is no user nobody@example.com",
        ),
        (("create", "ada@example.com", "--name", "x", "--scope", "all"), 2, "'all' is none of"),
        (
            ("create", "ada@example.com", "--name", "x", "--scope", "account:read", "--from", "home"),
            2,
            "'home' is not an address",
        ),
        (("revoke", "0" * 24), 5, "No such key"),
        (("revoke", "x"), 2, "is not an id"),
    ):
        result = ximler("keys", *arguments, env=env)
        assert result.returncode == code, result.stderr
        assert said in result.stderr
    assert database.apikeys.count_documents({}) == 0


def answer(process, secret):
    response = process.client.post("/graphql", json={"query": WHO}, headers={"Authorization": f"Bearer {secret}"})
    errors = response.json().get("errors")
    return errors[0]["extensions"]["code"] if errors else "OK"


def latest(processes, secret, expected):
    """When the last request began that was answered otherwise, in seconds from now,
    until all three answer as expected."""
    began, last = time.monotonic(), 0.0
    agreed = 0
    while agreed < len(processes):
        agreed = 0
        for process in processes:
            asked = time.monotonic() - began
            if answer(process, secret) == expected:
                agreed += 1
            else:
                last = asked
        assert time.monotonic() - began < 20
    return last


def test_three_processes_reject_a_revoked_key_within_a_second(ximler, empty, up):
    env, database = made_for_processes(ximler, empty)
    processes = [up(env=env) for _ in range(3)]
    user = database.users.find_one({"email": "ada@example.com"})["_id"]

    def prepared():
        """A key that every process knows by heart."""
        made = create(ximler, env)
        for _ in range(3):
            assert [answer(process, made["secret"]) for process in processes] == ["OK"] * 3
        return made

    # By another application, without a word to us.
    key = prepared()
    database.apikeys.update_one({"hint": key["hint"]}, {"$currentDate": {"revokedAt": True}})
    assert latest(processes, key["secret"], "API_KEY_REFUSED") < WITHIN_S

    key = prepared()
    database.apikeys.update_one({"hint": key["hint"]}, {"$currentDate": {"expiresAt": True}})
    assert latest(processes, key["secret"], "API_KEY_REFUSED") < WITHIN_S

    key = prepared()
    database.apikeys.update_one({"hint": key["hint"]}, {"$set": {"permissions": ["projects:read"]}})
    assert latest(processes, key["secret"], "SCOPE_MISSING") < WITHIN_S
    database.apikeys.update_one({"hint": key["hint"]}, {"$set": {"permissions": ["account:read"]}})
    assert latest(processes, key["secret"], "OK") < WITHIN_S

    database.credentials.insert_one({"_id": user, "recoveryCodes": []})
    database.credentials.update_one({"_id": user}, {"$currentDate": {"lockedAt": True}})
    assert latest(processes, key["secret"], "ACCOUNT_LOCKED") < WITHIN_S
    database.credentials.update_one({"_id": user}, {"$unset": {"lockedAt": ""}})
    assert latest(processes, key["secret"], "OK") < WITHIN_S

    database.users.update_one({"_id": user}, {"$currentDate": {"deletedAt": True}})
    assert latest(processes, key["secret"], "API_KEY_REFUSED") < WITHIN_S


def test_a_process_whose_stream_is_frozen_refuses_within_a_second_all_the_same(ximler, empty, up):
    """Between the process and the database stands a pipe that stops passing on what
    the change stream says, and no more.

    Nothing is closed, and no other connection suffers:
    to the process, the database has merely nothing to tell.
    """
    env, database = made_for_processes(ximler, empty)
    with Pipe(env["MONGODB_URI"]) as pipe:
        process = up(env={**env, "MONGODB_URI": pipe.uri})
        made = create(ximler, env)
        for _ in range(3):
            assert answer(process, made["secret"]) == "OK"
        pipe.freeze()
        database.apikeys.update_one({"hint": made["hint"]}, {"$currentDate": {"revokedAt": True}})
        assert latest([process], made["secret"], "API_KEY_REFUSED") < WITHIN_S + 0.1
        assert pipe.frozen  # it was the stream's connection that stood still
        pipe.thaw()
        assert answer(process, made["secret"]) == "API_KEY_REFUSED"


class Pipe:
    """A proxy between clients and a MongoDB that can withhold the replies of a change stream."""

    def __init__(self, uri):
        parsed = parse_uri(uri)
        self._server = parsed["nodelist"][0]
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.uri = uri.replace(f"{self._server[0]}:{self._server[1]}", f"{host}:{port}")
        self.uri = re.sub(r"replicaSet=[^&]*", "directConnection=true", self.uri)
        if "directConnection" not in self.uri:
            self.uri += ("&" if "?" in self.uri else "/?") + "directConnection=true"
        self._flows = threading.Event()
        self._flows.set()
        self.frozen = 0

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._flows.set()
        self._listener.close()

    def freeze(self):
        self._flows.clear()

    def thaw(self):
        self._flows.set()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                carries = threading.Event()
                threading.Thread(target=self._pass, args=(client, server, carries, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, carries, True), daemon=True).start()

    def _pass(self, source, target, carries, answers):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not answers and (b"$changeStream" in data or b"getMore" in data):
                    carries.set()
                if answers and carries.is_set() and not self._flows.is_set():
                    self.frozen += 1
                    self._flows.wait()
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
