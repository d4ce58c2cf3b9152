"""A hub on loopback: serves folders over HTTP for the requests of huggingface_hub.

`hub.add("org/name", folder)` publishes a folder; `from_pretrained("org/name")` then works as for users, in
this process and in others that inherit the environment. Requests are recorded, and the server can be set to
break off, to refuse, or to be slow.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

# A test without the `hub` fixture gets a closed port instead of the real hub, and no personal cache or token.
# Set before huggingface_hub is imported, because it reads them once.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
for _name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(_name, None)

# Stored outside git on the hub, so the answer is a redirect to another address.
_LARGE = (".safetensors", ".bin", ".ckpt", ".png", ".jpg", ".onnx", ".msgpack")


@dataclass
class Repository:
    """One published repository: its revisions, and the token that may read it."""

    name: str
    revisions: dict[str, Path] = field(default_factory=dict)
    token: str | None = None
    is_gated: bool = False

    def find(self, revision: str) -> tuple[Path, str] | None:
        """Return the folder and the commit of a branch or commit."""
        for branch, folder in self.revisions.items():
            commit = _commit_of(folder)
            if revision in (branch, commit):
                return folder, commit
        return None


@dataclass
class _Trouble:
    """A fault in the next answers to requests for files whose path ends in `suffix`."""

    suffix: str
    times: int
    status: int | None = None
    after: int | None = None


class HubStandIn:
    """A hub in a thread of this process."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []  # one for each request
        self.bytes_sent: dict[str, int] = {}
        self.delay = 0.0
        self._troubles: list[_Trouble] = []
        self._lock = threading.Lock()
        self.faults: list[BaseException] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler, self.faults)
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        # Another name of the same server: a client treats a store of large files as another host than the
        # hub, and does not send it the token.
        self.store = f"http://localhost:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering: cut connections, and refuse new ones."""
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_connections()
        self._thread.join()

    def add(
        self,
        name: str,
        folder: str | Path,
        *,
        revision: str = "main",
        token: str | None = None,
        gated: bool = False,
    ) -> Repository:
        """Publish a folder; a dataset's name begins with "datasets/".

        A repository with a token is only for requests with it. A gated one tells others that it exists.
        """
        repository = self.repositories.setdefault(name, Repository(name))
        repository.revisions[revision] = Path(folder)
        repository.token, repository.is_gated = token, gated
        return repository

    def break_off(self, suffix: str, *, after: int, times: int = 1) -> None:
        """Close the connection after this number of bytes of the file, `times` times."""
        self._troubles.append(_Trouble(suffix, times, after=after))

    def fail(self, suffix: str, status: int, *, times: int = 1_000_000) -> None:
        """Answer requests for a path that ends in `suffix` with this status."""
        self._troubles.append(_Trouble(suffix, times, status=status))

    def recover(self) -> None:
        self._troubles.clear()

    @property
    def files_sent(self) -> list[str]:
        """Return the files whose contents were sent, wholly or in part, each once."""
        return sorted(self.bytes_sent)

    def forget(self) -> None:
        """Forget the requests so far."""
        self.requests.clear()
        self.authorizations.clear()
        self.bytes_sent.clear()

    def _trouble(self, path: str, *, body: bool) -> _Trouble | None:
        with self._lock:
            for trouble in self._troubles:
                # Only contents can break off in the middle; a status applies to any request.
                if path.endswith(trouble.suffix) and trouble.times > 0 and (trouble.status or body):
                    trouble.times -= 1
                    return trouble
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], handler: type[_Handler], faults: list[BaseException]
    ) -> None:
        super().__init__(address, handler)
        self.faults = faults
        self.connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        self.connections.add(request)
        return request, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # A client may close its connection.
        if error is not None and not isinstance(error, ConnectionError):
            self.faults.append(error)


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        # The client identifies its user once a day; that does not belong to loading a checkpoint.
        if path == "/api/agent-harnesses":
            self._answer(404)
            return
        with self.hub._lock:
            self.hub.requests.append((self.command, path))
            self.hub.authorizations.append(self.headers.get("Authorization"))
        time.sleep(self.hub.delay)
        for pattern, answer in (
            (r"/api/(?P<kind>models|datasets)/(?P<name>.+)/tree/(?P<revision>[^/]+)", self._tree),
            (r"/api/(?P<kind>models|datasets)/(?P<name>.+)/revision/(?P<revision>[^/]+)", self._info),
            (r"/api/(?P<kind>models|datasets)/(?P<name>.+)", self._info),
            (r"/(?P<name>.+?)/(resolve|raw)/(?P<revision>[^/]+)/(?P<file>.+)", self._file),
            (r"/stored/(?P<name>.+)/at/(?P<revision>[^/]+)/(?P<file>.+)", self._stored),
        ):
            if match := re.fullmatch(pattern, path):
                groups = match.groupdict()
                kind = "datasets/" if groups.pop("kind", None) == "datasets" else ""
                answer(kind + groups.pop("name"), **{"revision": "main", **groups})
                return
        self._answer(404)

    def _find(self, name: str, revision: str) -> tuple[Path, str] | None:
        """Return the folder and the commit if the caller may read them; otherwise send the refusal."""
        repository = self.hub.repositories.get(name)
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None or (
            repository.token and not repository.is_gated and repository.token != bearer
        ):
            # The hub does not tell others whether a private repository exists.
            self._answer(404 if bearer else 401, error="RepoNotFound")
        elif repository.token and repository.token != bearer:
            self._answer(403 if bearer else 401, error="GatedRepo")
        elif (found := repository.find(revision)) is None:
            self._answer(404, error="RevisionNotFound")
        elif trouble := self.hub._trouble(urlsplit(self.path).path, body=False):
            self._answer(trouble.status or 500)
        else:
            return found
        return None

    def _info(self, name: str, revision: str) -> None:
        if found := self._find(name, revision):
            folder, commit = found
            files = [{"rfilename": path} for path in _files_in(folder)]
            self._json({"id": name, "sha": commit, "siblings": files, "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._find(name, revision):
            folder = found[0]
            entries: list[dict[str, Any]] = []
            for path in _files_in(folder):
                size, digest = (folder / path).stat().st_size, _digest(folder / path)
                entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": digest[:40]}
                if path.endswith(_LARGE):
                    entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
                entries.append(entry)
            self._json(entries)

    def _file(self, name: str, revision: str, file: str) -> None:
        if (found := self._find(name, revision)) is None:
            return
        folder, sha = found
        commit = {"X-Repo-Commit": sha}
        path = folder / file
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            self._answer(404, error="EntryNotFound", headers=commit)
        elif file.endswith(_LARGE):
            self._answer(
                302,
                headers={
                    **commit,
                    "Location": f"{self.hub.store}/stored/{name}/at/{sha}/{file}",
                    "X-Linked-Etag": f'"{_digest(path)}"',
                    "X-Linked-Size": str(path.stat().st_size),
                },
            )
        else:
            self._send(path, file, {**commit, "ETag": f'"{_digest(path)[:40]}"'})

    def _stored(self, name: str, revision: str, file: str) -> None:
        found = self.hub.repositories[name].find(revision)
        assert found is not None
        folder = found[0]
        self._send(folder / file, file, {"ETag": f'"{_digest(folder / file)}"'})

    def _send(self, path: Path, name: str, headers: dict[str, str]) -> None:
        contents = path.read_bytes()
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(contents) - 1}/{len(contents)}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", mimetypes.guess_type(name)[0] or "application/octet-stream")
        self.send_header("Content-Length", str(len(contents) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        trouble = self.hub._trouble(name, body=True)
        end = len(contents) if trouble is None else min(len(contents), start + (trouble.after or 0))
        self.wfile.write(contents[start:end])
        with self.hub._lock:
            self.hub.bytes_sent[name] = self.hub.bytes_sent.get(name, 0) + end - start
        if end < len(contents):
            self.close_connection = True

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, error: str | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if error is not None:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _commit_of(folder: Path) -> str:
    """Return an id that changes with the files."""
    names = "".join(name + _digest(folder / name) for name in _files_in(folder))
    return hashlib.sha1(names.encode()).hexdigest()


_digests: dict[tuple[str, int, int], str] = {}


def _digest(path: Path) -> str:
    stat = path.stat()
    key = str(path), stat.st_mtime_ns, stat.st_size
    if key not in _digests:
        _digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _digests[key]


def use_hub(patch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Point huggingface_hub to a hub and an empty cache, in this process and in those that it starts."""
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    patch.setenv("HF_ENDPOINT", url)
    patch.setenv("HF_HOME", str(home))
    patch.delenv("HF_HUB_CACHE", raising=False)
    # The library reads its environment at import, so the values that it has read are replaced too.
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HOME", str(home))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "AGENT_HARNESSES_PATH", str(home / "agents.json"), raising=False)
    patch.setattr(hf_api.api, "endpoint", url)
    # It would wait seconds before it tries again.
    for module in (file_download, _http):
        patch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Provide an empty hub, which all libraries of a test use as the real one, and an empty cache."""
    from huggingface_hub import close_session

    stand_in = HubStandIn()
    use_hub(monkeypatch, stand_in.url, tmp_path_factory.mktemp("hf_home"))
    yield stand_in
    stand_in.close()
    close_session()
    if stand_in.faults:
        raise stand_in.faults[0]
