"""A Hugging Face hub on loopback, with as much of its HTTP interface as one model needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """`files`: those of the model by name; `requests`: method and path of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail_with = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def commit(self) -> str:
        text = json.dumps({name: data.hex() for name, data in sorted(self.files.items())})
        return _sha1(text.encode())


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, body: Any = None, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self) -> bool:
        """Write the request down; whether it was answered with an error already."""
        self.server.requests.append(f"{self.command} {self.path.partition('?')[0]}")
        if self.server.fail_with:
            self._answer({"error": "no"}, self.server.fail_with)
        return bool(self.server.fail_with)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refuse():
            return
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/owner/name/commit/{self.server.commit}"
            self._answer({"success": True, "commitOid": self.server.commit, "commitUrl": url})
        else:  # /api/repos/create, /api/validate-yaml
            self._answer({"url": f"{self.server.url}/owner/name", "errors": [], "warnings": []})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._refuse():
            return
        files, model = self.server.files, "/api/models/owner/name"
        found = re.fullmatch(r"/owner/name/resolve/[^/]+/(.+)", self.path)
        if found and found[1] in files:
            data = files[found[1]]
            self._answer(data, ETag=f'"{_sha1(data)}"', X_Repo_Commit=self.server.commit)
        elif self.path.startswith(f"{model}/tree/") and files:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _sha1(data)}
                for name, data in files.items()
            ]
            self._answer(json.dumps(tree).encode())
        elif self.path.startswith(model) and files:
            siblings = [{"rfilename": name} for name in files]
            self._answer({"id": "owner/name", "sha": self.server.commit, "siblings": siblings})
        else:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
