"""A store as gsutil sees it: gcp-storage-emulator behind TLS, on a line that can be disturbed.

gsutil speaks HTTPS only and the emulator HTTP only, so a relay stands between them. The relay also
counts what is sent, and can stop or break the line after a number of bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import threading
import urllib.parse
from pathlib import Path

BUCKET = "gresearch"
_BOTO = """\
[Credentials]
gs_json_host = localhost
gs_json_port = {port}
[Boto]
ca_certificates_file = {certificate}
num_retries = 2
max_retry_delay = 1
[GSUtil]
prefer_api = json
software_update_check_period = 0
resumable_threshold = 100000
sliced_object_download_threshold = {slices}
sliced_object_download_component_size = 1M
parallel_process_count = 2
parallel_thread_count = 2
"""


class Store:
    """The emulator and the relay. `sent` counts the bytes of all objects that went to gsutil."""

    def __init__(self, folder: Path, emulator: Path):
        self.folder = folder
        self.certificate = _certificate(folder)
        self._port = _free_port()
        command = [emulator, "start", "--port", str(self._port), "--in-memory", "--quiet"]
        self._log = (folder / "emulator.log").open("wb")
        self._emulator = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        self.line = Line(self._port, self.certificate)
        self._wait()
        self._call("POST", "/storage/v1/b", json.dumps({"name": BUCKET}).encode())

    def _wait(self) -> None:
        for _ in range(600):
            with contextlib.suppress(OSError):
                return self._call("GET", "/")
            assert self._emulator.poll() is None, (self.folder / "emulator.log").read_text()
            threading.Event().wait(0.05)
        raise TimeoutError("the emulator does not answer")

    def _call(self, method: str, path: str, body: bytes = b"") -> None:
        connection = http.client.HTTPConnection("localhost", self._port)
        kind = "application/json" if method != "PUT" else "application/octet-stream"
        connection.request(method, path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        assert answer.status == 200, (method, path, answer.status, answer.read())

    def put(self, name: str, content: bytes) -> None:
        """Store an object."""
        self._call("PUT", f"/{BUCKET}/{urllib.parse.quote(name)}", content)

    def state(self, name: str, **metadata: str) -> None:
        """Change what the store says of an object, such as its crc32c."""
        path = f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}"
        self._call("PATCH", path, json.dumps(metadata).encode())

    def remove(self, name: str) -> None:
        path = f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}"
        self._call("DELETE", path)

    def boto(self, slices: str = "0") -> Path:
        """The settings with which gsutil takes this for the store, with certificates checked.

        slices: size from which on an object is fetched in slices at once; "0" is never
        """
        path = self.folder / f"boto_{slices}"
        text = _BOTO.format(port=self.line.port, certificate=self.certificate, slices=slices)
        path.write_text(text)
        return path

    def close(self) -> None:
        self.line.close()
        self._emulator.terminate()
        self._emulator.wait()
        self._log.close()


class Line:
    """A TLS server that passes everything on to the emulator, one request after the other.

    sent:        bytes of objects that were sent to gsutil so far
    stop_after:  the line hangs as soon as `sent` exceeds this; then `stopped` is set
    is_broken:   every connection is closed at once
    """

    def __init__(self, emulator_port: int, certificate: Path):
        self.sent, self.stop_after, self.is_broken = 0, None, False
        self.stopped, self._free = threading.Event(), threading.Event()
        self._emulator_port = emulator_port
        self._one = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._server = socket.create_server(("localhost", 0), backlog=128)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def mend(self) -> None:
        """Let everything through again, and count from 0."""
        self.sent, self.stop_after, self.is_broken = 0, None, False
        self.stopped.clear()
        self.release()

    def release(self) -> None:
        """Let go on what hangs."""
        self._free.set()
        self._free = threading.Event()

    def close(self) -> None:
        self.mend()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:  # gsutil was killed, or left
            if self.is_broken:
                return
            with self._context.wrap_socket(plain, server_side=True) as client:
                request = _read_request(client)
                with self._one:
                    answer = _ask(self._emulator_port, request)
                is_object = b"alt=media" in request.partition(b"\r\n")[0]
                for begin in range(0, len(answer), 65536):
                    if self.is_broken:
                        return
                    piece = answer[begin : begin + 65536]
                    client.sendall(piece)
                    if is_object:
                        self._count(len(piece))

    def _count(self, size: int) -> None:
        self.sent += size
        if self.stop_after is not None and self.sent > self.stop_after:
            self.stopped.set()
            self._free.wait()


def _read_request(client: ssl.SSLSocket) -> bytes:
    """Read one request; those of downloads have no body."""
    request = b""
    while b"\r\n\r\n" not in request:
        piece = client.recv(65536)
        if not piece:
            raise ConnectionResetError
        request += piece
    return request.replace(b"keep-alive", b"close")


def _ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("localhost", port)) as emulator:
        emulator.sendall(request)
        pieces = []
        while piece := emulator.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def _free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def _certificate(folder: Path) -> Path:
    path = folder / "store.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path
