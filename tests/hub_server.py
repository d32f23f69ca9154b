"""A local HTTP server with the part of the Hugging Face hub's API that an upload uses.

It keeps repositories in memory, and checks tokens, hashes and model cards. Files that end in .safetensors are uploaded
through git LFS, as on the hub, and all others within the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import ModelCard

TOKEN = "hf_valid"


@dataclass
class Repository:
    """Files of each branch, and the commits with their branch, the newest last."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: list[tuple[str, str]] = field(default_factory=list)


class HubServer:
    """`drop(method, path)` returns whether to close the connection instead of answering a request.

    `requests` has the method and path of each request, and `owner` may create repositories.
    """

    def __init__(self, owner: str = "lab", drop: Callable[[str, str], bool] = lambda method, path: False) -> None:
        self.owner, self.drop = owner, drop
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.refuse_large = False
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON content of the answer."""
        words = [urllib.parse.unquote(word) for word in path.strip("/").split("/")]
        if words == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if words == ["api", "validate-yaml"]:
            return self._validate(json.loads(body)["content"])
        if words[0] == "lfs":
            return self._store(words[1], body)
        name = "/".join(words[2:4] if words[0] == "api" else [words[0], words[1].removesuffix(".git")])
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found"}
        if words[0] != "api":
            return self._large_files(json.loads(body)["objects"])
        action, branch = (*words[4:], "", "")[:2]
        if action in ("", "revision"):
            sha = repository.commits[-1][1] if repository.commits else "0" * 40
            return 200, {"id": name, "private": repository.private, "sha": sha, "siblings": []}
        if action == "branch":
            if branch in repository.branches:
                return 409, {"error": "Reference already exists"}
            repository.branches[branch] = dict(repository.branches["main"])
            return 200, {}
        if branch not in repository.branches:
            return 404, {"error": f"Invalid rev id: {branch}"}
        files = repository.branches[branch]
        if action == "tree":
            return 200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "0"} for path in files]
        if action == "preupload":
            return 200, {"files": [_upload_mode(one["path"], files) for one in json.loads(body)["files"]]}
        if action != "commit":
            return 404, {"error": f"{path} is not part of this server"}
        return self._commit(name, branch, [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != self.owner:
            return 403, {"error": f"You don't have the rights to create a model under {wanted['organization']}"}
        known = name in self.repositories
        if not known:
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.repositories[name] = Repository(bool(private))
        return 409 if known else 200, {"url": f"{self.url}/{name}"}

    def _validate(self, content: str) -> tuple[int, Any]:
        data = ModelCard(content).data.to_dict()
        wrong = data.get("license") == "not-a-license"
        return (400, {"errors": [{"message": '"license" must be one of [apache-2.0]'}]}) if wrong else (200, {})

    def _store(self, oid: str, body: bytes) -> tuple[int, Any]:
        if self.refuse_large:
            return 403, {"error": "the signature has expired"}
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "wrong SHA-256"}
        self.large[oid] = body
        return 200, {}

    def _large_files(self, objects: list[dict[str, Any]]) -> tuple[int, Any]:
        found = []
        for one in objects:
            action = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}
            found.append(one | ({} if one["oid"] in self.large else {"actions": action}))
        return 200, {"transfer": "basic", "objects": found}

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        repository = self.repositories[name]
        files = dict(repository.branches[branch])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        repository.branches[branch] = files
        commit = hashlib.sha1(repr((branch, sorted(files.items()))).encode()).hexdigest()
        repository.commits.append((branch, commit))
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit}


def _upload_mode(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Return how a file is uploaded, and the hash of the stored file, by which clients skip an equal file."""
    large, content = path.endswith(".safetensors"), files.get(path)
    known = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if content is None:
        return known
    header = b"" if large else b"blob %d\0" % len(content)
    return known | {"oid": (hashlib.sha256 if large else hashlib.sha1)(header + content).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def _reply(self) -> None:
        method, path = self.command, urllib.parse.urlsplit(self.path).path
        body = self._body()
        hub = self.hub
        with hub.lock:
            hub.requests.append((method, path))
            if hub.drop(method, path):
                self.close_connection = True
                return
            # As on the hub, the address for LFS is signed and needs no token, and cards are checked for everybody.
            public = path.startswith("/lfs/") or path == "/api/validate-yaml"
            allowed = public or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, content = hub.answer(method, path, body) if allowed else (401, {"error": "Invalid token"})
        answer = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        if status == 404 and "not found" in str(content):
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _reply  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
