"""Faults on demand: an HTTP proxy before the S3 server, for boto3 and Arrow in any process (AWS_ENDPOINT_URL)."""

import http.client
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["Fault", "FaultProxy"]

BLOCK_BYTES = 8192
DROPPED = {"connection", "content-length", "transfer-encoding"}  # of the answer: they are written anew


@dataclass
class Fault:
    """What happens to requests that match, from number `skip` on, `times` times. Fields may be combined.

    Attributes:
        method, key: regular expressions for `PUT` and for `/bucket/folder/name` (found anywhere in it).
        status, code: an error is answered and the server never sees the request, e.g. 503, "SlowDown".
        reset: the connection is reset and the server never sees the request.
        lost: the server does what is asked for, and the connection is reset instead of an answer.
        cut_after: the connection is reset after so many bytes of the answer's body.
        flip: number of a byte of the answer's body that is changed.
        flip_sent: the same for the request's body: what the server is given.
        stall_s: silence before the answer's body.
        bytes_per_s: pace of the answer's body.
    """

    method: str = "."
    key: str = ""
    status: int | None = None
    code: str = ""
    reset: bool = False
    lost: bool = False
    cut_after: int | None = None
    flip: int | None = None
    flip_sent: int | None = None
    stall_s: float = 0.0
    bytes_per_s: float | None = None
    skip: int = 0
    times: float = float("inf")


class FaultProxy:
    """Passes requests on to `target` (http://host:port), except for what `faults` say. A context manager.

    Attributes:
        url: where it listens.
        faults: may be changed at any time; the first that matches a request is applied.
        requests: (method, /bucket/key) of everything asked for, in order.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.down_until_s = 0.0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, **fields: Any) -> Fault:
        """Add a `Fault(**fields)`."""
        self.faults.append(Fault(**fields))
        return self.faults[-1]

    def outage(self, seconds: float) -> None:
        """Reset every connection for so long from now."""
        self.down_until_s = time.monotonic() + seconds

    def asked(self, method: str, key: str) -> int:
        """How many requests of this method there were for a key that holds `key`."""
        return sum(made == method and key in path for made, path in self.requests)

    def take(self, method: str, path: str) -> Fault | None:
        """Note a request; returns the fault that meets it."""
        with self.lock:
            self.requests.append((method, path))
            if time.monotonic() < self.down_until_s:
                return Fault(reset=True)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.method, method) and re.search(fault.key, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                    else:
                        fault.times -= 1
                        return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self) -> None:
        body = self.body()
        fault = self.proxy.take(self.command, unquote(urlsplit(self.path).path)) or Fault()
        if fault.reset:
            return self.reset()
        if fault.status is not None:
            text = f"<Error><Code>{fault.code}</Code><Message>{fault.code} on purpose</Message></Error>".encode()
            return self.answer(fault.status, [("Content-Type", "application/xml")], text, Fault())
        if fault.flip_sent is not None:
            body = flipped(body, fault.flip_sent)
        server = http.client.HTTPConnection(self.proxy.target, timeout=60)
        sent = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        server.request(self.command, self.path, body, {**sent, "Content-Length": str(len(body))})
        reply = server.getresponse()
        headers = [(name, value) for name, value in reply.getheaders() if name.lower() not in DROPPED]
        if self.command == "HEAD":
            headers.append(("Content-Length", reply.getheader("Content-Length", "0")))
        content = reply.read()
        server.close()
        if fault.lost:
            return self.reset()
        self.answer(reply.status, headers, content, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault) -> None:
        if fault.flip is not None and body:
            body = flipped(body, fault.flip)
        self.send_response_only(status)
        for name, value in headers if self.command == "HEAD" else [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        time.sleep(fault.stall_s)
        step = BLOCK_BYTES if fault.bytes_per_s is None else min(BLOCK_BYTES, max(1, int(fault.bytes_per_s / 10)))
        for start in range(0, len(body), step):
            block = body[start : start + step]
            if fault.cut_after is not None and start + len(block) > fault.cut_after:
                break
            self.wfile.write(block)
            if fault.bytes_per_s is not None:
                time.sleep(len(block) / fault.bytes_per_s)
        if fault.cut_after is not None:
            self.reset()

    def reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # with this, a reset instead of a proper end

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):  # after a reset
            pass


def flipped(body: bytes, place: int) -> bytes:
    """The body with one bit changed, in the byte at `place` (counted around)."""
    place %= len(body)
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
