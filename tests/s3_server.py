"""A real S3 server (moto) as a process of its own, and a TCP proxy that injects faults into its answers."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator

import s3fs
from support import free_port

FAULTS = ("drop", "slow", "wrong", "truncate", "500", "503")
"""Dropped connection, slow answer, wrong byte in the body, body that ends early, and two server errors."""
ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>injected</Message></Error>"


@contextlib.contextmanager
def moto_server() -> Iterator[int]:
    """Start the server, and yield its port."""
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5):
                break
            assert process.poll() is None, "the S3 server has ended"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


class FaultyProxy:
    """Forwards one request per connection. `choose(method, path)` returns a fault of `FAULTS`, or None.

    `faults` counts the injected faults by kind, and `requests` the requests by (method, path).
    """

    def __init__(self, target: int, choose: Callable[[str, str], str | None] = lambda method, path: None) -> None:
        self.target, self.choose = target, choose
        self.faults: Counter[str] = Counter()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            request = _read_message(client, client)
            if not request:
                return
            method, path, _ = request.split(b" ", 2)
            where = (method.decode(), path.decode().partition("?")[0])
            with self.lock:
                self.requests[where] += 1
                fault = self.choose(*where)
                if fault is not None:
                    self.faults[fault] += 1
            client.sendall(self._answer(request, where[0], fault))

    def _answer(self, request: bytes, method: str, fault: str | None) -> bytes:
        if fault == "drop":
            return b""
        if fault in ("500", "503"):
            body = b"" if method == "HEAD" else ERROR
            return f"HTTP/1.1 {fault} Error\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        if fault == "slow":
            time.sleep(0.1)
        elif fault == "wrong" and body:
            # botocore would notice by the CRC that moto sends; not every server sends one.
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"x-amz-checksum-")]
            head = b"\r\n".join(lines)
            place = random.Random(len(body)).randrange(len(body))
            body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        elif fault == "truncate":
            body = body[: len(body) // 2]
        return head + b"\r\n\r\n" + body


def _read_message(client: socket.socket, answers: socket.socket) -> bytes:
    """Read one request with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(1 << 16)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if name.lower() == b"expect":
            answers.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(body) < length:
        more = client.recv(1 << 16)
        if not more:
            return b""
        body += more
    return head + b"\r\n\r\n" + body


def environment(url: str) -> dict[str, str]:
    """Return the variables that point an S3 client at a server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


def use(monkeypatch, url: str) -> None:
    """Point the S3 clients of this process at a server. An earlier client would keep its server."""
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
