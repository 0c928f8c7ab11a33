"""The life of `ximler up`: quick to start, hard to hurt, clean to stop."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import pytest

from .conftest import Up, free_port, gone

REGISTER = "mutation($i: RegisterInput!) { register(input: $i) { accepted } }"
SIGN_IN = "mutation($e: String!, $p: String!) { signIn(email: $e, password: $p) { token } }"
CREATE = "mutation($n: String!) { createProject(input: {name: $n}) { id } }"
PASSWORD = "correct horse battery"


def an_account(up, email="ada@example.com"):
    """Register by the link that development logs, sign in, and return the token."""
    seen = len(up.lines)
    up.query(REGISTER, i={"name": "Ada", "email": email, "password": PASSWORD})
    token = up.wait_for(r"/confirm\?token=([\w-]+)", after=seen)[1]
    assert "Welcome" in up.client.post("/confirm", data={"token": token, "password": PASSWORD}).text
    return up.query(SIGN_IN, e=email, p=PASSWORD)["data"]["signIn"]["token"]


def test_an_empty_folder_becomes_a_running_ximler(up, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    running = up()
    running.wait_for("other users may read .*data.*mode 755.*chmod 700")
    token = an_account(running)
    answer = running.query("{ me { name projects { nodes { id } } usage { resource limit } } }", token=token)
    assert answer["data"]["me"]["name"] == "Ada"
    assert running.client.get("/readyz").json() == {"status": "ok", "database": "connected"}
    assert running.stop() == 0


def refuses(url):
    """Whether the server refuses new connections within ten seconds, and resets none until then."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/healthz", timeout=5)
        except httpx.ConnectError:
            return True
    return False


def queue_requests(url, most=20):
    """Connections with a request in the backlog: the server process is stopped and has not accepted them."""
    address = urlsplit(url)
    queued = [socket.create_connection((address.hostname, address.port), timeout=30) for _ in range(most)]
    for each in queued:
        each.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    return queued


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_answers_all_that_have_connected_and_refuses_new_connections(up, workers):
    running = up("--workers", workers)
    body = json.dumps(
        {"query": REGISTER, "variables": {"i": {"name": "A", "email": "a@example.com", "password": PASSWORD}}}
    ).encode()
    address = urlsplit(running.url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname, address.port, timeout=30)) as connection:
        connection.putrequest("POST", "/graphql")
        for header in (("Content-Type", "application/json"), ("Content-Length", len(body)), ("Expect", "100-continue")):
            connection.putheader(*header)
        connection.endheaders()
        assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # the application waits for the body
        os.killpg(running.process.pid, signal.SIGSTOP)
        queued = queue_requests(running.url)
        os.kill(running.process.pid, signal.SIGTERM)
        os.killpg(running.process.pid, signal.SIGCONT)
        for each in queued:
            with contextlib.closing(each):
                assert each.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503")
        assert refuses(running.url)  # so that a load balancer goes elsewhere at once
        connection.send(body)
        assert json.load(connection.getresponse()) == {"data": {"register": {"accepted": True}}}
    assert running.process.wait(30) == 0


def test_ctrl_c_reaches_the_database_only_after_the_requests(up):
    running = up()
    mongod = running.mongod()
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.process.wait(30) == 0
    assert gone(mongod)


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.soak), "2"])
def test_a_killed_ximler_takes_its_database_and_workers_with_it_and_the_next_start_recovers(up, workers):
    first = up("--workers", workers)
    token = an_account(first)
    created = [first.query(CREATE, token=token, n=f"p{i}")["data"]["createProject"]["id"] for i in range(3)]
    mongod = first.mongod()
    session = first.process.pid
    first.kill()
    assert gone(mongod)
    left = subprocess.run(["pgrep", "-g", str(session)], capture_output=True, text=True).stdout.split()
    assert all(gone(int(pid)) for pid in left)
    second = up()
    kept = second.query("{ projects { nodes { id } } }", token=token)["data"]["projects"]["nodes"]
    assert {node["id"] for node in kept} == set(created)


def test_a_killed_mongod_is_started_again_and_nothing_acknowledged_is_lost(up):
    running = up()
    tokens = [an_account(running, f"u{i}@example.com") for i in range(4)]
    acknowledged: list[str] = []
    refused: list[str] = []

    def write(token: str) -> None:
        for i in range(12):
            try:
                answer = running.query(CREATE, token=token, n=f"p{i}")
            except httpx.HTTPError as error:
                refused.append(str(error))
                continue
            if answer.get("data"):
                acknowledged.append(answer["data"]["createProject"]["id"])
                delete = "mutation($i: ID!) { deleteProject(id: $i) { id } }"
                if i % 2:
                    running.query(delete, token=token, i=acknowledged[-1])
            else:
                refused.append(answer["errors"][0]["extensions"]["code"])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, token) for token in tokens]
        time.sleep(0.15)
        os.kill(running.mongod(), signal.SIGKILL)
        for done in writing:
            done.result()
    assert set(refused) <= {"DATABASE_UNAVAILABLE", "QUOTA_EXCEEDED", "ALREADY_EXISTS", "CONFLICT"}
    running.wait_for("database restarted")
    ready = running.client.get("/readyz")
    assert ready.status_code == 200, ready.text
    # By id, deleted ones included, so query the database itself.
    result = subprocess.run(
        [sys.executable, "-m", "ximler", "shell", "--data-dir", str(running.data_dir), "-c",
         "import json; print(json.dumps([str(d['_id']) for d in await db.raw.projects.find({}, {'_id': 1}).to_list()]))"],
        capture_output=True, text=True, env={**os.environ, "XIMLER_LOG_LEVEL": "error"},
    )  # fmt: skip
    assert set(acknowledged) <= set(json.loads(result.stdout))
    assert running.stop() == 0


def children(running):
    pids = ["pgrep", "-P", str(running.process.pid), "-f", "serving import child"]
    return {int(pid) for pid in subprocess.run(pids, capture_output=True, text=True).stdout.split()}


def test_workers_share_the_socket_and_a_dead_one_is_replaced(up):
    running = up("--workers", "2")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: running.client.get("/healthz").status_code, range(60)))
    assert statuses == [200] * 60
    metrics = running.client.get("/metrics").text
    assert 'ximler_http_requests_total{method="GET",route="/healthz",status="200"} 60.0' in metrics
    assert "ximler_database_up 2.0" in metrics

    victim, other = children(running)
    os.kill(victim, signal.SIGKILL)
    running.wait_for("worker died")
    deadline = time.monotonic() + 20
    while len(now := children(running)) < 2 or victim in now:
        assert time.monotonic() < deadline, "it was not replaced"
        time.sleep(0.02)
    assert other in now
    assert running.client.get("/healthz").status_code == 200
    # The new one is loading: it has nothing to finish, and nothing to say.
    assert running.stop() == 0
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A server that runs while the tests start others."""
    running = Up(tmp_path_factory.mktemp("up") / "data", env={})
    yield running
    running.close()


def test_a_second_ximler_on_the_same_data_names_its_owner(undisturbed, ximler):
    result = ximler("up", "--port", "0", "--data-dir", str(undisturbed.data_dir))
    assert result.returncode == 8
    assert str(undisturbed.process.pid) in result.stderr
    assert "--data-dir" in result.stderr


def test_commands_attach_to_the_running_database(undisturbed, ximler):
    result = ximler("users", "list", "--json", "--data-dir", str(undisturbed.data_dir))
    assert json.loads(result.stdout) == {"items": [], "next": None}


def test_a_taken_port_is_one_sentence(undisturbed, ximler):
    port = undisturbed.url.rsplit(":", 1)[1]
    result = ximler("up", "--port", port)
    assert result.returncode == 8
    assert result.stderr.startswith(f"error: Cannot listen on 127.0.0.1:{port}")


def test_the_secret_key_is_generated_once_and_is_its_owners_only(up):
    first = up()
    token = an_account(first)
    key = first.data_dir / "secret_key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert first.data_dir.stat().st_mode & 0o777 == 0o700
    first.stop()
    assert up().query("{ me { name } }", token=token)["data"]["me"]["name"] == "Ada"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_invalid_setting_is_one_sentence_for_any_number_of_workers(ximler, tmp_path, workers):
    result = ximler("up", "--port", "0", "--workers", workers, "--data-dir", str(tmp_path / "data"),
                    env={"XIMLER_TRUSTED_PROXIES": "proxy.internal"})  # fmt: skip
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: XIMLER_TRUSTED_PROXIES: 'proxy.internal'")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("init", ["--init", "--no-init"])
def test_an_unreachable_database_is_one_sentence_for_any_number_of_workers(ximler, workers, init):
    uri = f"mongodb://127.0.0.1:{free_port()}/?replicaSet=rs"
    env = {"XIMLER_SECRET_KEY": "k" * 32, "XIMLER_SERVER_SELECTION_TIMEOUT_MS": "300"}
    result = ximler("up", "--port", "0", "--workers", workers, init, "--mongodb-uri", uri, env=env)
    assert result.returncode == 8
    assert "Traceback" not in result.stderr
    assert len(sentences(result.stderr)) == 1


def sentences(text):
    """Output that is not part of the log."""
    return [line for line in text.splitlines() if line.startswith("error: ")]


SERVE = """
import asyncio, sys
from ximler.runtime import Shutdown
from ximler.cli import main, serving
from ximler.core.errors import XimlerError
from ximler.core.settings import Settings

async def work():
    serve = serving.serve_here if sys.argv[1] == "1" else serving.serve_in_children
    settings = Settings(secret_key="k" * 32, server_selection_timeout_ms=300, workers=int(sys.argv[1]))
    listener = serving.bind("127.0.0.1", 0)
    await serve(settings, sys.argv[2], listener, shutdown=Shutdown(10), started=lambda: print("is running"))

try:
    asyncio.run(work())
except XimlerError as problem:
    sys.exit(main.report(problem))
except main.click.exceptions.Exit as exit:
    sys.exit(exit.exit_code)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_workers_that_fail_to_start_are_not_reported_as_running(workers):
    """The database left after it was looked for."""
    uri = f"mongodb://127.0.0.1:{free_port()}/?replicaSet=rs"
    result = subprocess.run([sys.executable, "-c", SERVE, workers, uri], capture_output=True, text=True, timeout=60)
    assert result.returncode == 8, result.stderr
    assert "is running" not in result.stdout
    assert "Traceback" not in result.stderr
    assert len(sentences(result.stderr)) == int(workers)


def test_a_customer_buys_a_plan_in_the_sandbox(up):
    running = up()
    token = an_account(running)
    begin = """mutation { startCheckout(planId: "pro", coupon: "WELCOME20", returnUrl: "http://localhost/back") {
      url quote { dueMinor } } }"""
    begun = running.query(begin, token=token)["data"]["startCheckout"]
    assert begun["quote"]["dueMinor"] == 2320
    paid = running.client.post(httpx.URL(begun["url"]).path, data={"card": "4242424242424242"})
    assert (paid.status_code, paid.headers["location"]) == (303, "http://localhost/back")
    me = running.query("{ me { subscription { planId status } usage { resource limit } } }", token=token)["data"]["me"]
    assert me["subscription"] == {"planId": "pro", "status": "ACTIVE"}
    assert {"resource": "apiCalls", "limit": 100_000} in me["usage"]
