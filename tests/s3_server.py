"""moto's S3 behind a socket, so that s3fs and Dask workers in processes of their own speak real HTTP to it.

moto's own server needs Flask, which nothing else here does; this hands each request to the same S3
implementation.  `python -m tests.s3_server PORT` serves until it is ended.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ACCESS = "smearflow-test"
SECRET = "s3cr3t-of-the-object-store"  # secret-scan: allow, it lives as long as a test


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stubber = None
    turn = threading.Lock()  # moto keeps plain dictionaries

    def handle_one(self) -> None:
        from botocore.awsrequest import AWSPreparedRequest
        from botocore.compat import HTTPHeaders
        from moto.core.botocore_stubber import BotocoreStubber

        headers = HTTPHeaders()
        for name, value in self.headers.items():
            headers[name] = value
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = f"https://s3.us-east-1.amazonaws.com{self.path}"
        del headers["Host"]
        headers["Host"] = "s3.us-east-1.amazonaws.com"
        request = AWSPreparedRequest(self.command, url, headers, body, False)
        with self.turn:
            answer = BotocoreStubber().process_request(request)
        status, found, content = answer if answer is not None else (404, {}, b"")
        data = content.encode() if isinstance(content, str) else bytes(content or b"")
        self.send_response(int(status))
        for name, value in found.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, str(value))
        length = len(data)
        if self.command == "HEAD":
            length = int({k.lower(): v for k, v in found.items()}.get("content-length", 0))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

    def log_message(self, *_: object) -> None:
        pass


def serve(port: int) -> None:
    ThreadingHTTPServer(("127.0.0.1", port), _Handler).serve_forever()


@contextlib.contextmanager
def running_s3(monkeypatch: pytest.MonkeyPatch, bucket: str = "lab") -> Iterator[str]:
    """Start the server with one bucket; yields its endpoint, and sets it and the keys in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    process = subprocess.Popen([sys.executable, "-m", "tests.s3_server", str(port)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
        yield endpoint
    finally:
        process.kill()
        process.wait()
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
