"""A small Hugging Face Hub on the loopback interface, for the real client to talk to.

It keeps repositories in memory, knows users by their tokens, and can be told to fail: with a status, or by cutting the
connection. What it answers is what the client asks for when it creates, describes, pushes and pulls.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from joserfc import jwt
from joserfc.jwk import RSAKey


@dataclass
class Repository:
    name: str
    kind: str
    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    """Hash, message and files of each commit, oldest first."""
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        content = repr((self.name, len(self.commits), sorted(files))).encode()
        sha = hashlib.sha1(content).hexdigest()
        self.commits.append((sha, message, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        revision = self.tags.get(revision, revision)
        for sha, _, files in reversed(self.commits):
            if revision in ("main", sha):
                return sha, files
        return None

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]


@dataclass
class Failure:
    method: str
    path: str
    status: int | None
    """None cuts the connection, 0 says nothing at all until the Hub is closed."""
    times: int
    headers: dict[str, str]


class Hub:
    """The server. ``users`` maps tokens to names; ``readers`` are tokens that may not write."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.readers: set[str] = set()
        self.seconds_per_commit = 0.0
        self.sign_ins: dict[str, str] = {}
        """The token that each user hands to a page on signing in; the browser's cookie ``hub_user`` says who it is."""
        self._key: RSAKey | None = None
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files = False
        """Whether weights go through the large file protocol, as on the real Hub."""
        self.objects: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.requests: list[tuple[str, str, str]] = []
        """Method, path with query, and Authorization header of each request."""
        self.connections: list[socket.socket] = []
        self.closed = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def add(self, name: str, files: dict[str, bytes], *, kind: str = "model", private: bool = False) -> Repository:
        repository = Repository(name, kind, private)
        repository.commit("initial commit", dict(files))
        self.repositories[kind, name] = repository
        return repository

    def model(self, name: str) -> Repository:
        return self.repositories["model", name]

    def space(self, name: str) -> Repository:
        return self.repositories["space", name]

    def fail(
        self, method: str, path: str, status: int | None, times: int = 1000, headers: dict[str, str] | None = None
    ) -> None:
        """Answer ``times`` requests whose path matches the expression with a status, cut them off, or keep silent."""
        self.failures.append(Failure(method, path, status, times, headers or {}))

    @property
    def key(self) -> RSAKey:
        """What identities are signed with."""
        if self._key is None:
            self._key = RSAKey.generate_key(2048, {"kid": "hub"})
        return self._key

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:  # those that are kept alive
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def start(self) -> None:
        self._thread.start()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""


def stand_in(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let the client of this process ask ``hub`` instead of the real one, with an empty cache and nobody signed in."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)  # between its attempts
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


class _Handler(BaseHTTPRequestHandler):
    server_hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server_hub.connections.append(self.connection)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        hub = self.server_hub
        address = urlsplit(self.path)
        path = unquote(address.path)
        hub.requests.append((method, self.path, self.headers.get("Authorization", "")))
        for failure in hub.failures:
            if failure.method == method and failure.times > 0 and re.search(failure.path, path):
                failure.times -= 1
                if failure.status is None:
                    self._cut(method)
                elif failure.status == 0:
                    hub.closed.wait(60)
                    self.close_connection = True
                else:
                    self._body()
                    self._json({"error": "injected"}, failure.status, failure.headers)
                return
        body = self._body()
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        token = credentials if scheme == "Bearer" else None
        user = hub.users.get(token or "")
        if token is not None and user is None:
            self._json(
                {"error": "Invalid credentials"},
                401,
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
            return
        self.user, self.may_write = user, user is not None and token not in hub.readers
        for expression, wanted, handle in _ROUTES:
            match = re.fullmatch(expression, path)
            if match and method in wanted:
                handle(self, match, body, parse_qs(address.query))
                return
        self._json({"error": "not found"}, 404)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _cut(self, method: str) -> None:
        if method == "GET":  # half of an answer
            self.wfile.write(self._half())
        else:  # half of a question
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _half(self) -> bytes:
        """The beginning of the file that was asked for, or of anything."""
        match = re.fullmatch(rf"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
        if match is None:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nonly this"
        content = self.server_hub.repositories["dataset" if match[1] else "model", match[2]].files[match[4]]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        rest = content[int(asked[1]) :] if asked else content
        status = b"206 Partial Content" if asked else b"200 OK"
        return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(rest)) + rest[: len(rest) // 2]

    def _json(self, values: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(values).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # What may be asked -----------------------------------------------------------------------------------------------

    def _readable(self, kind: str, name: str) -> Repository | None:
        """The repository, if it exists and this user may know it; otherwise the answer has been sent."""
        repository = self.server_hub.repositories.get((kind, name))
        owner = name.split("/", maxsplit=1)[0]
        if repository is None or (repository.private and owner != self.user):
            missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._json({"error": "Repository not found"}, 401 if self.user is None else 404, missing)
            return None
        if repository.gated and owner != self.user:
            self._json({"error": "restricted"}, 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
            return None
        return repository

    def _writable(self, name: str, kind: str = "model") -> Repository | None:
        repository = self._readable(kind, name)
        if repository is not None and (not self.may_write or name.split("/", maxsplit=1)[0] != self.user):
            self._json({"error": "no rights"}, 403, {"X-Error-Message": "You don't have the rights"})
            return None
        return repository

    def _version(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = repository.at(revision)
        if found is None:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return found

    def whoami(self, match: re.Match[str], body: bytes, query: Any) -> None:
        if self.user is None:
            self._json({"error": "Invalid username or password."}, 401)
        else:
            known = {"name": self.user, "fullname": self.user.title(), "avatarUrl": f"/avatars/{self.user}.svg"}
            self._json(known | {"type": "user", "auth": {"accessToken": {"role": "write"}}})

    def create(self, match: re.Match[str], body: bytes, query: Any) -> None:
        wanted = json.loads(body)
        owner = wanted["organization"] or self.user
        if self.user is None:
            self._json({"error": "Invalid username or password."}, 401)
            return
        name, kind = f"{owner}/{wanted['name']}", wanted.get("type") or "model"
        if owner != self.user or not self.may_write:
            self._json({"error": f"You don't have the rights to create a model under {owner!r}"}, 403)
            return
        url = {"url": f"{self.server_hub.endpoint}/{'spaces/' if kind == 'space' else ''}{name}"}
        if (kind, name) in self.server_hub.repositories:
            self._json({"error": f"You already created this {kind} repo"} | url, 409)
            return
        files = {".gitattributes": b""}
        if kind == "space":
            assert wanted["sdk"] == "gradio"
            files["README.md"] = b"---\ntitle: New\nsdk: gradio\n---\n"
        self.server_hub.add(name, files, kind=kind, private=wanted.get("visibility") == "private")
        self._json(url | {"name": name})

    def validate(self, match: re.Match[str], body: bytes, query: Any) -> None:
        content = json.loads(body)["content"]
        parts = re.match(r"---\n(.*?)\n---\n", content, re.S)
        errors = []
        try:
            if parts is None or not isinstance(yaml.safe_load(parts[1]), dict):
                errors.append({"message": "no metadata"})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, match: re.Match[str], body: bytes, query: Any) -> None:
        repository = self._writable(match[2], match[1])
        if repository is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            large = self.server_hub.large_files and file["path"].endswith(".safetensors")
            there = repository.files.get(file["path"])
            oid = None if there is None or large else hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append(answer | ({"oid": oid} if oid else {}))
        self._json({"files": files})

    def batch(self, match: re.Match[str], body: bytes, query: Any) -> None:
        if self._writable(match[1]) is None:
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.server_hub.endpoint}/storage/{wanted['oid']}"}
            known = wanted["oid"] in self.server_hub.objects
            objects.append(wanted | ({} if known else {"actions": {"upload": upload}}))
        self._json({"transfer": "basic", "objects": objects})

    def store(self, match: re.Match[str], body: bytes, query: Any) -> None:
        assert hashlib.sha256(body).hexdigest() == match[1]
        assert "Authorization" not in self.headers, "the token must not be shown to the storage"
        self.server_hub.objects[match[1]] = body
        self._send(b"", 200, {})

    def commit(self, match: re.Match[str], body: bytes, query: Any) -> None:
        repository = self._writable(match[2], match[1])
        if repository is None:
            return
        time.sleep(self.server_hub.seconds_per_commit)
        files, message = dict(repository.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server_hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repository.commit(message, files)
        self._json({"commitUrl": f"{self.server_hub.endpoint}/{repository.name}/commit/{sha}", "commitOid": sha})

    def describe(self, match: re.Match[str], body: bytes, query: Any) -> None:
        repository = self._readable(match[1], match[2])
        version = repository and self._version(repository, match[3] or "main")
        if not repository or not version:
            return
        sha, files = version
        readme = re.match(r"---\n(.*?)\n---\n", files.get("README.md", b"").decode(), re.S)
        siblings = [{"rfilename": name, "size": len(content), "blobId": "0" * 40} for name, content in files.items()]
        self._json(
            {"id": repository.name, "sha": sha, "private": repository.private, "tags": [],
             "siblings": siblings, "cardData": yaml.safe_load(readme[1]) if readme else None}
        )  # fmt: skip

    def tree(self, match: re.Match[str], body: bytes, query: Any) -> None:
        repository = self._readable(match[1], match[2])
        version = repository and self._version(repository, match[3])
        if not version:
            return
        self._json(
            [{"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}
             for name, content in version[1].items()]
        )  # fmt: skip

    def resolve(self, match: re.Match[str], body: bytes, query: Any) -> None:
        kind = {"datasets/": "dataset", "spaces/": "space"}.get(match[1], "model")
        repository = self._readable(kind, match[2])
        version = repository and self._version(repository, match[3])
        if not version:
            return
        sha, files = version
        if match[4] not in files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = files[match[4]]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha}
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if requested:
            start = int(requested[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(content[start:], 206, headers)
        else:
            self._send(content, 200, headers | {"Content-Length": str(len(content)), "Accept-Ranges": "bytes"})

    # Signing in, as OpenID Connect has it ----------------------------------------------------------------------------

    def openid(self, match: re.Match[str], body: bytes, query: Any) -> None:
        here = self.server_hub.endpoint
        oauth = {"authorization_endpoint": f"{here}/oauth/authorize", "token_endpoint": f"{here}/oauth/token"}
        keys = {"jwks_uri": f"{here}/oauth/jwks", "id_token_signing_alg_values_supported": ["RS256"]}
        self._json({"issuer": here} | oauth | keys)

    def authorize(self, match: re.Match[str], body: bytes, query: Any) -> None:
        user = SimpleCookie(self.headers.get("Cookie", ""))["hub_user"].value
        code = base64.urlsafe_b64encode(json.dumps([user, query["client_id"][0], query["nonce"][0]]).encode()).decode()
        back = query["redirect_uri"][0]
        back += ("&" if "?" in back else "?") + urlencode({"code": code, "state": query["state"][0]})
        self._send(b"", 302, {"Location": back})

    def give_token(self, match: re.Match[str], body: bytes, query: Any) -> None:
        hub = self.server_hub
        user, client, nonce = json.loads(base64.urlsafe_b64decode(parse_qs(body.decode())["code"][0]))
        now = int(time.time())
        claims = {
            "iss": hub.endpoint, "sub": user, "aud": client, "nonce": nonce, "iat": now, "exp": now + 3600,
            "name": user.title(), "preferred_username": user, "profile": f"{hub.endpoint}/{user}", "picture": "",
        }  # fmt: skip
        identity = jwt.encode({"alg": "RS256", "kid": "hub"}, claims, hub.key)
        scope = "openid profile contribute-repos"
        self._json(
            {"access_token": hub.sign_ins[user], "token_type": "bearer", "expires_in": 3600, "scope": scope,
             "id_token": identity}
        )  # fmt: skip

    def keys(self, match: re.Match[str], body: bytes, query: Any) -> None:
        self._json({"keys": [self.server_hub.key.as_dict(private=False)]})


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, tuple[str, ...], Any]] = [
    (r"/\.well-known/openid-configuration", ("GET",), _Handler.openid),
    (r"/oauth/authorize", ("GET",), _Handler.authorize),
    (r"/oauth/token", ("POST",), _Handler.give_token),
    (r"/oauth/jwks", ("GET",), _Handler.keys),
    (r"/api/whoami-v2", ("GET",), _Handler.whoami),
    (r"/api/repos/create", ("POST",), _Handler.create),
    (r"/api/validate-yaml", ("POST",), _Handler.validate),
    (rf"/api/(model|space)s/{_NAME}/preupload/main", ("POST",), _Handler.preupload),
    (rf"/api/(model|space)s/{_NAME}/commit/main", ("POST",), _Handler.commit),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", ("POST",), _Handler.batch),
    (r"/storage/([0-9a-f]{64})", ("PUT",), _Handler.store),
    (rf"/api/(model|dataset|space)s/{_NAME}(?:/revision/([^/]+))?", ("GET",), _Handler.describe),
    (rf"/api/(model|dataset)s/{_NAME}/tree/([^/]+)", ("GET",), _Handler.tree),
    (rf"/(datasets/|spaces/)?{_NAME}/resolve/([^/]+)/(.+)", ("GET", "HEAD"), _Handler.resolve),
]
