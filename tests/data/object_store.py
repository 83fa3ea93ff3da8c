"""A loopback object store for tests and benchmarks: counts requests, fails and slows on demand.

It serves a folder over HTTP, with ranges, or stands before another server (moto's S3). As a
program it serves a folder until it is killed and prints its URL:
`python tests/data/object_store.py FOLDER [BYTES_PER_S]`.
"""

import http.client
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# What becomes of the n-th GET (from 0) of an object: "" or one of
# "500" or another status, "stall" (silence as long as the store lasts), "cut" (the connection
# ends early), "short" and "flip" (a wrong body).
Fault = Callable[[str, int], str]
_CHUNK_BYTES = 64 << 10


def no_fault(path: str, number: int) -> str:
    return ""


class LoopbackStore:
    """A server on 127.0.0.1 as long as the context lasts; `url` has no slash at its end.

    Args:
        behind: a folder, or (host, port) of a server.
        bytes_per_s: of all bodies together; 0 for no limit.
        ranges: whether the server knows Range headers; false as in Python's http.server.
        tls: a server's context, for https.
    """

    def __init__(
        self,
        behind: Path | tuple[str, int],
        bytes_per_s: float = 0,
        ranges: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behind, self.bytes_per_s, self.ranges = behind, bytes_per_s, ranges
        self.fault: Fault = no_fault
        self.client: Any = None  # of the server behind, past all faults, where it has one
        self.gets: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._free_at_s = 0.0
        store = self

        class Handler(_Handler):
            owner = store

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def count(self, path: str) -> int:
        """Counts a GET; how many there were before it."""
        with self._lock:
            self.gets[path] += 1
            return self.gets[path] - 1

    def wait_turn(self, num_bytes: int) -> None:
        """Sleep until so many more bytes may go out."""
        if self.bytes_per_s:
            with self._lock:
                self._free_at_s = max(self._free_at_s, time.monotonic())
                self._free_at_s += num_bytes / self.bytes_per_s
                wait_s = self._free_at_s - time.monotonic()
            time.sleep(max(0.0, wait_s))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: LoopbackStore
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self._answer(self.owner.fault(path, self.owner.count(path)))

    def _answer(self, fault: str) -> None:
        if fault == "stall":
            self.owner.stopped.wait()
            self.close_connection = True
            return
        if fault.isdecimal():
            self._send(int(fault), {}, b"<Error><Code>InternalError</Code></Error>", "")
            return
        forwarded = self._from_server if isinstance(self.owner.behind, tuple) else self._from_disk
        self._send(*forwarded(), fault)

    def _from_disk(self) -> tuple[int, dict[str, str], bytes]:
        assert isinstance(self.owner.behind, Path)
        file = self.owner.behind / self.path.lstrip("/")
        if not file.is_file():
            return 404, {}, b""
        size, wanted = file.stat().st_size, self.headers.get("Range", "")
        if not (wanted and self.owner.ranges):
            return 200, {"Content-Length": str(size)}, file.read_bytes()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if int(first) >= size:
            return 416, {"Content-Range": f"bytes */{size}"}, b""
        stop = min(int(last or size - 1), size - 1) + 1
        with file.open("rb") as opened:
            opened.seek(int(first))
            body = opened.read(stop - int(first))
        return 206, {"Content-Range": f"bytes {first}-{stop - 1}/{size}"}, body

    def _from_server(self) -> tuple[int, dict[str, str], bytes]:
        assert isinstance(self.owner.behind, tuple)
        connection = http.client.HTTPConnection(*self.owner.behind, timeout=20)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server")
        }
        body = answer.read()
        connection.close()
        return answer.status, headers, body

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: str) -> None:
        if fault == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        elif fault == "short":
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            names = [name for name in headers if name.lower() == "content-length"]
            headers = {name: headers[name] for name in headers if name not in names}
            headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = len(body) // 2 if fault == "cut" else len(body)
        for start in range(0, stop, _CHUNK_BYTES):
            chunk = body[start : min(start + _CHUNK_BYTES, stop)]
            self.owner.wait_turn(len(chunk))
            self.wfile.write(chunk)
        self.close_connection = fault == "cut"


if __name__ == "__main__":
    # A connection a request: MosaicML's forked workers would share the one of their parent, and get
    # each other's answers.
    _Handler.protocol_version = "HTTP/1.0"
    limit = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    with LoopbackStore(Path(sys.argv[1]), bytes_per_s=limit) as serving:
        print(serving.url, flush=True)
        threading.Event().wait()
