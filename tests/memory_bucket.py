"""A bucket in memory in the place of gs:// and s3://, for tests that need no server."""

import collections
import hashlib
import itertools

import pytest

from sedd_jax.system import bucket, mirror
from sedd_jax.system.object_stores import ABSENT, Entry


class MemoryBucket:
    """An `ObjectStore` of one bucket, for both schemes.

    Attributes:
      address: gs://bucket.
      objects: the content of every object, by its key.
      fault: raised instead of an answer, if it is set.
      requests: the names and keys of those that were made.
      bytes_read: of all contents, by their keys.
      tells_md5: whether listings have the MD5 of objects.
    """

    name, address, files = "bucket", "gs://bucket", None

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.fault: Exception | None = None
        self.requests: list[tuple[str, str]] = []
        self.bytes_read = collections.Counter()
        self.tells_md5 = True
        self._versions: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def list(self, bucket, prefix):
        self._begin("list", bucket, prefix)
        return [(key, self._entry(key)) for key in sorted(self.objects) if key.startswith(prefix)]

    def entry(self, bucket, key):
        self._begin("entry", bucket, key)
        self._content(key)
        return self._entry(key)

    def read(self, bucket, key, start, stop, version):
        self._begin("read", bucket, key)
        content = self._content(key)
        if version is not None:
            self._check(key, version)
        self.bytes_read[key] += len(content[start:stop])
        return content[start:stop], self._version(key)

    def write(self, bucket, key, content, if_version):
        self._begin("write", bucket, key)
        if if_version is not None:
            self._check(key, if_version)
        self.objects[key], self._versions[key] = bytes(content), str(next(self._numbers))
        return self._versions[key]

    def delete(self, bucket, key, if_version):
        self._begin("delete", bucket, key)
        self._content(key)
        if if_version is not None:
            self._check(key, if_version)
        del self.objects[key]

    def upload(self, path, bucket, key):
        self.write(bucket, key, path.read_bytes(), None)

    def _begin(self, name, bucket, key):
        self.requests.append((name, key))
        if self.fault:
            raise self.fault
        if bucket != self.name:
            raise FileNotFoundError(bucket)

    def _content(self, key):
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def _version(self, key):
        return self._versions.setdefault(key, "0") if key in self.objects else ABSENT

    def _check(self, key, version):
        if self._version(key) != version:
            raise FileExistsError(key)

    def _entry(self, key):
        content = self.objects[key]
        md5 = hashlib.md5(content).hexdigest() if self.tells_md5 else None
        return Entry(len(content), self._version(key), md5)


@pytest.fixture
def memory_bucket(monkeypatch):
    """The bucket gs://bucket, empty, which this process finds in memory; s3://bucket is it too."""
    store = MemoryBucket()
    monkeypatch.setattr(bucket, "_opened", lambda scheme: store)
    monkeypatch.setattr(bucket, "patience", lambda: 0.0)
    monkeypatch.setattr(mirror, "_OPEN", {})
    monkeypatch.setattr(mirror, "_READ", {})
    return store
