"""A hub on loopback, small but real: the routes that huggingface_hub calls, over directories of the test.

It keeps a log of what was asked and can misbehave on demand: break a connection off inside a file, ignore ranges, send
other bytes than it announces. Runs in threads of the test's process.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RESOLVE = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_API = re.compile(r"/api/models/(?P<repo>[\w.-]+/[\w.-]+?)(/revision/(?P<revision>[^/?]+))?")


@dataclass
class HubServer:
    """What the hub holds, how it misbehaves, and what it was asked."""

    repositories: dict[str, Path]
    endpoint: str = ""
    cut_after_bytes: dict[str, list[int]] = field(default_factory=dict)  # file -> answers to break off, in order
    ignores_ranges: bool = False
    lies_about: set[str] = field(default_factory=set)  # files sent with other content of the same length
    keeps_in_git: set[str] = field(default_factory=set)  # weight files without a digest in the metadata
    gated: set[str] = field(default_factory=set)
    redirects_to: str | None = None  # another hub's address, to which weight files are redirected
    tokens: set[str | None] = field(default_factory=set)  # seen in Authorization headers
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    sent_bytes: dict[str, int] = field(default_factory=dict)

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repo.encode()).hexdigest()

    def downloads(self) -> list[str]:
        """Files of which a body was sent, ranges included."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


def _is_weight(file: str) -> bool:
    return file.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass  # HubServer.requests is the log

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.tokens.add(self.headers.get("Authorization"))
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if match := _API.fullmatch(path):
            self._list(match["repo"], match["revision"])
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match["repo"], match["revision"], match["file"], with_body=with_body)
        else:
            self._refuse(404, "EntryNotFound")

    def _known(self, repo: str, revision: str | None) -> bool:
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif repo not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        elif revision not in (None, "main", self.hub.commit(repo)):
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _list(self, repo: str, revision: str | None) -> None:
        if not self._known(repo, revision):
            return
        siblings = []
        for file in sorted(self.hub.repositories[repo].iterdir()):
            entry = {"rfilename": file.name, "size": file.stat().st_size, "blobId": "0" * 40}
            if _is_weight(file.name) and file.name not in self.hub.keeps_in_git:
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": file.stat().st_size, "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": repo, "sha": self.hub.commit(repo), "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _resolve(self, repo: str, revision: str, name: str, *, with_body: bool) -> None:
        if not self._known(repo, revision):
            return
        file = self.hub.repositories[repo] / name
        if not file.is_file():
            self._refuse(404, "EntryNotFound", repo)
            return
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest() if _is_weight(name) else hashlib.sha1(content).hexdigest()
        if name in self.hub.lies_about:
            content = bytes(byte ^ 255 for byte in content)
        begin, end, status = 0, len(content), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not self.hub.ignores_ranges:
            begin, status = int(asked[1]), 206
            end = min(end, int(asked[2]) + 1) if asked[2] else end
        if _is_weight(name) and self.hub.redirects_to is not None:
            status, end = 302, begin
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"{self.hub.redirects_to}{self.path}")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", self.hub.commit(repo))
        if _is_weight(name):
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if with_body:
            self._send(name, content[begin:end])

    def _send(self, name: str, body: bytes) -> None:
        cuts = self.hub.cut_after_bytes.get(name)
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        # Counted first: whoever has the answer may look at the count at once.
        self.hub.sent_bytes[name] = self.hub.sent_bytes.get(name, 0) + len(body)
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, repo: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if repo is not None:
            self.send_header("X-Repo-Commit", self.hub.commit(repo))
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of these tests


@contextmanager
def serve_hub(repositories: dict[str, Path]):
    """Serve the directories as repositories until the block ends."""
    hub = HubServer(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
