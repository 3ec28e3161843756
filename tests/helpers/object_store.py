"""A real S3 server for tests (moto's, in a child process, with authentication), and a proxy before it that can die.

    with serve(folder) as store:
        store.make_bucket("bucket")
        Output(store.uri("bucket/run")).write("name", b"content")

Tests load it by `from tests.helpers import object_store`. Run as a program this file is the server: it prints its
port, then a line for each request.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class ObjectStore:
    """A running server: its port, a user with all rights, and a user who may only read."""

    def __init__(self, port: int, log: Path):
        self.port, self.log = port, log
        self.admin = ("setup", "setup")  # the server does not check anybody before there are users
        self.admin, self.reader = self._user("admin", "s3:*"), self._user("reader", "s3:ListBucket", "s3:GetObject")

    def client(self, service: str = "s3"):
        """A boto3 client with the admin's keys."""
        import boto3

        key, secret = self.admin
        address = f"http://127.0.0.1:{self.port}"
        keys = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=address, **keys)

    def _user(self, name: str, *actions: str) -> tuple[str, str]:
        iam = self.client("iam")
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    def make_bucket(self, name: str) -> None:
        """Create a bucket."""
        self.client().create_bucket(Bucket=name)

    def uri(self, path: str, user: tuple[str, str] | None = (), port: int | None = None) -> str:
        """The address of bucket/path with the admin's credentials, a user's, or none (None). port: that of a gate."""
        keys = ":".join(urllib.parse.quote(part, safe="") for part in user or self.admin)
        credentials = "" if user is None else f"{keys}@"
        return f"s3://{credentials}{path}?endpoint_override=http://127.0.0.1:{port or self.port}"

    def requests(self) -> list[str]:
        """All requests until now: "PUT /bucket/name?query"."""
        return self.log.read_text().splitlines()[1:]

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """Names and sizes of all objects, at most 1000, by another client."""
        entries = self.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return {entry["Key"]: entry["Size"] for entry in entries}


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[ObjectStore]:
    """Start a server as a child process, with logs in `folder`. At its end all its objects are lost."""
    log = folder / "requests.txt"
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "6"}  # twice the number that ObjectStore._user needs
    with (
        log.open("w") as out,
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen([sys.executable, __file__], stdout=out, stderr=errors, env=environment) as child,
    ):
        try:
            while not log.read_text().endswith("\n"):
                if child.poll() is not None:
                    raise RuntimeError((folder / "errors.txt").read_text())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.1)
            yield ObjectStore(int(log.read_text().split()[0]), log)
        finally:
            child.kill()


def forget_environment(monkeypatch) -> None:
    """Remove the credentials, endpoints and settings of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere/at/all")


class Gate:
    """A TCP proxy before a server that simulates a death: `shut` breaks every connection, `open` starts again.

    The server's objects remain, as in a real store. limit: after so many bytes towards the server the gate shuts by
    itself. silent: the gate accepts connections and never answers.
    """

    def __init__(self, port: int, limit: int | None = None, silent: bool = False):
        self.target, self.limit, self.silent, self.port = port, limit, silent, 0
        self.listener, self.connections, self.lock = None, [], threading.Lock()
        self.open()

    def open(self) -> None:
        """Listen on the same port as before."""
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        self.listener.listen(50)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def shut(self) -> None:
        """Die: stop listening and reset all connections."""
        with self.lock:
            with contextlib.suppress(OSError):  # the call ends a waiting accept
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self.connections = []

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                server = client if self.silent else socket.create_connection(("127.0.0.1", self.target))
                with self.lock:
                    self.connections += [client, server]
                if not self.silent:
                    threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                    threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if upwards and self.limit is not None:
                    self.limit -= len(data)
                    if self.limit < 0:
                        self.limit = None
                        return self.shut()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        return None


def main() -> None:
    """Run the server."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ, start_response):
        query = environ.get("QUERY_STRING")
        print(environ["REQUEST_METHOD"], environ["PATH_INFO"] + (f"?{query}" if query else ""), flush=True)
        if "HTTP_AUTHORIZATION" not in environ:  # S3 answers so; moto would fail with HTTP status 500
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(DENIED)))])
            return [DENIED]
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
