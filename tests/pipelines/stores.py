"""Stores for tests, as real processes on loopback: moto's S3 behind a door that can be killed, and a web server with ranges."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

GATE = Path(__file__).with_name("gate.py")
BUCKET = "videos"
KEYS = {"AWS_ACCESS_KEY_ID": "a-key-of-the-tests", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests"}


class S3:
    """A server of S3. It keeps its objects in memory, so what is killed is the door in front of it: who talks to it through
    the door sees connections that break off and are refused, as when the server itself is gone."""

    def __init__(self) -> None:
        self._inner = _free_port()
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._inner)]
        self._server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._door: subprocess.Popen[str] | None = None
        self._known: Any = None
        self.port = 0
        self.come_back()
        self._wait()
        self._client().create_bucket(Bucket=BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **KEYS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
        }

    def go_away(self) -> None:
        assert self._door is not None
        _end(self._door)
        self._door = None

    def come_back(self) -> None:
        words = [sys.executable, str(GATE), str(self.port), str(self._inner)]
        self._door = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._door.stdout is not None
        self.port = int(self._door.stdout.readline())

    def put_folder(self, folder: Path, prefix: str) -> str:
        """Copy the files of a folder into the bucket, with another library than ours; returns the address."""
        client = self._client()
        for path in folder.iterdir():
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def objects(self, prefix: str) -> dict[str, bytes]:
        client = self._client()
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        names = [one["Key"] for one in found]
        return {
            name.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names
        }

    def put(self, key: str, data: bytes) -> None:
        self._client().put_object(Bucket=BUCKET, Key=key, Body=data)

    def copy(self, prefix: str, other: str) -> None:
        """All below a prefix below another one too, with what the objects say of themselves."""
        client = self._client()
        for name in self.objects(prefix):
            client.copy_object(Bucket=BUCKET, Key=f"{other}/{name}", CopySource=f"{BUCKET}/{prefix}/{name}")

    def remove(self, key: str) -> None:
        self._client().delete_object(Bucket=BUCKET, Key=key)

    def modified(self, prefix: str) -> dict[str, Any]:
        found = self._client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        return {one["Key"].removeprefix(f"{prefix}/"): one["LastModified"] for one in found}

    def close(self) -> None:
        for process in (self._door, self._server):
            if process is not None:
                _end(process)
        self._client().close()

    def _client(self) -> Any:
        if self._known is None:
            import boto3

            keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
            self._known = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self._inner}", **keys)
        return self._known

    def _wait(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._inner}/moto-api/", timeout=5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("moto's server did not start")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3]:
    server = S3()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, which this process finds by its environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@contextmanager
def web(folder: Path, *words: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A web server of a folder: its address and its process."""
    command = [sys.executable, "-m", "benchmarks.stores", "serve", str(folder), "--port", str(port), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        _end(process)


def environment(**more: str) -> dict[str, str]:
    """Of a process that imports from here, without keys."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "GOOGLE_"))}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2])} | more


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.communicate()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
