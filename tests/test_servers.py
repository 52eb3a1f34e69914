"""The servers of buckets, and the harm that their proxy does."""

import http.client
import json
import time
import urllib.request

import pytest

from tests.proxy import WRITES, cut_answer, cut_upload, delay, hide, lose_answer, refuse, reset

# moto reads who asks, and believes it
SIGNED = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, Signature=0"
CONTENT = bytes(range(256)) * 4096


class Client:
    """Objects by plain requests."""

    def __init__(self, bucket, proxy=None):
        _, _, self.name = bucket.address.partition("://")
        self._gcs, self._url = bucket.address.startswith("gs"), (proxy or bucket.proxy).url

    def _answer(self, method, path, content=None):
        headers = {"Content-Type": "application/octet-stream", "Authorization": SIGNED}
        request = urllib.request.Request(self._url + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read()

    def put(self, key, content=CONTENT):
        if self._gcs:
            path = f"/upload/storage/v1/b/{self.name}/o?uploadType=media&name={key}"
            self._answer("POST", path, content)
        else:
            self._answer("PUT", f"/{self.name}/{key}", content)

    def get(self, key):
        path = (
            f"/storage/v1/b/{self.name}/o/{key}?alt=media" if self._gcs else f"/{self.name}/{key}"
        )
        return self._answer("GET", path)

    def list(self):
        if self._gcs:
            page = json.loads(self._answer("GET", f"/storage/v1/b/{self.name}/o"))
            return [item["name"] for item in page.get("items", [])]
        page = self._answer("GET", f"/{self.name}?list-type=2").decode()
        return [part.partition("</Key>")[0] for part in page.split("<Key>")[1:]]


@pytest.fixture(params=["gcs", pytest.param("s3", marks=pytest.mark.slow)])
def bucket(request):
    return request.getfixturevalue(request.param)


def test_requests_are_counted(bucket):
    client = Client(bucket)
    assert client.list() == []
    client.put("a")
    assert client.get("a") == CONTENT and client.list() == ["a"]
    assert bucket.proxy.count() == 4 and bucket.proxy.count("GET") == 3
    put = bucket.proxy.requests[1]
    assert put.method in WRITES and put.status == 200 and put.sent == len(CONTENT)
    assert bucket.proxy.requests[2].received == len(CONTENT)
    other = bucket.another_proxy()
    assert Client(bucket, other).list() == ["a"]
    assert other.count() == 1 and bucket.proxy.count() == 4


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
def test_refused_then_well(bucket, status):
    client = Client(bucket)
    bucket.proxy.inject(refuse(status), methods=WRITES, path="a", skip=1, times=1)
    client.put("a", b"1")
    with pytest.raises(urllib.error.HTTPError) as error:
        client.put("a", b"2")
    assert error.value.code == status
    assert client.get("a") == b"1"
    client.put("a", b"3")
    assert client.get("a") == b"3"


@pytest.mark.parametrize(
    ("harm", "done"), [(reset, False), (cut_upload, False), (lose_answer, True)]
)
def test_an_upload_without_an_answer(bucket, harm, done):
    client = Client(bucket)
    bucket.proxy.inject(harm, methods=WRITES)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected, urllib.error.URLError)):
        client.put("a")
    assert client.list() == (["a"] if done else [])
    bucket.proxy.heal()
    client.put("a")
    assert client.get("a") == CONTENT


def test_half_an_answer(bucket):
    client = Client(bucket)
    client.put("a")
    bucket.proxy.inject(cut_answer, times=1)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        client.get("a")
    assert client.get("a") == CONTENT


def test_late(bucket):
    client = Client(bucket)
    seconds = 0.3 if bucket.address.startswith("gs") else 2  # moto's times are whole seconds
    bucket.proxy.inject(hide("a", seconds))
    client.put("a")
    client.put("b")
    assert client.list() == ["b"] and client.get("a") == CONTENT
    time.sleep(seconds)
    assert client.list() == ["a", "b"]
    bucket.proxy.heal()
    bucket.proxy.inject(delay(0.1))
    began = time.monotonic()
    client.list()
    assert time.monotonic() - began > 0.1
