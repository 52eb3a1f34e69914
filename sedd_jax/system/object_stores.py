"""The requests to Google Cloud Storage and Amazon S3 that `bucket` is made of, by fsspec."""

import base64
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from sedd_jax.system.packages import package

ABSENT = ""  # the version of an object that does not exist
_REQUEST_SECONDS = 60  # of a request without an answer


class Entry(NamedTuple):
    """What a listing says of an object.

    Attributes:
      size: bytes.
      version: changes with every write: its generation (gs) or ETag (s3).
      md5: of its content in hexadecimal, None where the store does not say it.
    """

    size: int
    version: str
    md5: str | None


class ObjectStore(Protocol):
    """Single requests; they raise what their client raises, see `bucket`.

    Attributes:
      files: the file system of fsspec.
    """

    files: Any

    def list(self, bucket: str, prefix: str) -> Iterator[tuple[str, Entry]]:
        """Yields the keys that begin with a prefix, and what there is."""

    def entry(self, bucket: str, key: str) -> Entry:
        """Returns what there is of an object."""

    def read(
        self, bucket: str, key: str, start: int, stop: int | None, version: str | None
    ) -> tuple[bytes, str]:
        """Returns the bytes [start, stop) of an object and its version.

        Args:
          bucket: its name.
          key: of the object.
          start: the first byte.
          stop: the byte after the last; None for all.
          version: that it must have; None for any.
        """

    def write(self, bucket: str, key: str, content: bytes, if_version: str | None) -> str:
        """Writes an object and returns its version.

        Args:
          bucket: its name.
          key: of the object.
          content: all of it.
          if_version: the version to replace, `ABSENT` for a new one; None for any.
        """

    def delete(self, bucket: str, key: str, if_version: str | None) -> None:
        """Deletes an object.

        Args:
          bucket: its name.
          key: of the object.
          if_version: the version to delete; None for any.
        """

    def upload(self, path: Path, bucket: str, key: str) -> None:
        """Writes an object from a file.

        Args:
          path: the file.
          bucket: its name.
          key: of the object.
        """


class Gcs:
    """The JSON interface of Google Cloud Storage, through gcsfs."""

    def __init__(self):
        # gcsfs would ask by gRPC for the bucket's type, and wait a minute where only JSON is spoken
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        package("gcsfs", '"sedd_jax[gcs]"', "An address gs://")
        emulated = "STORAGE_EMULATOR_HOST" in os.environ
        # otherwise gcsfs goes on as nobody, and says of a private bucket that it does not exist
        token = "anon" if emulated else "google_default"
        defaults = {"token": token, "requests_timeout": _REQUEST_SECONDS}
        # with the options of etils.epath, so that Orbax has the same one
        self.files = _file_system("gcs", defaults, finalize_on_close=True)

    def list(self, bucket: str, prefix: str) -> Iterator[tuple[str, Entry]]:
        token = None
        while True:
            page = self.files.call(
                "GET", "b/{}/o", bucket, json_out=True, prefix=prefix, pageToken=token
            )
            for item in page.get("items", []):
                yield item["name"], _gcs_entry(item)
            token = page.get("nextPageToken")
            if not token:
                return

    def entry(self, bucket, key):
        return _gcs_entry(self.files.call("GET", "b/{}/o/{}", bucket, key, json_out=True))

    def read(self, bucket, key, start, stop, version):
        headers, content = self.files.call(
            "GET", "b/{}/o/{}", bucket, key, alt="media", generation=version, **_range(start, stop)
        )
        found = headers.get("X-Goog-Generation") or version
        if found is None:
            found = self.entry(bucket, key).version
        return _whole(content, headers), found

    def write(self, bucket, key, content, if_version):
        condition = None if if_version is None else int(if_version or 0)
        # in two parts: fake-gcs-server heeds no condition of an upload of the content alone
        boundary = f"--{uuid.uuid4().hex}"
        names = json.dumps({"name": key})
        head = f"{boundary}\r\nContent-Type: application/json\r\n\r\n{names}\r\n{boundary}\r\n"
        head += "Content-Type: application/octet-stream\r\n\r\n"
        return self.files.call(
            "POST",
            f"{self.files._location}/upload/storage/v1/b/{quote(bucket)}/o",
            uploadType="multipart",
            ifGenerationMatch=condition,
            data=b"".join((head.encode(), content, f"\r\n{boundary}--\r\n".encode())),
            headers={"Content-Type": f"multipart/related; boundary={boundary[2:]}"},
            json_out=True,
        )["generation"]

    def delete(self, bucket, key, if_version):
        self.files.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=if_version)

    def upload(self, path, bucket, key):
        self.files.put_file(str(path), f"{bucket}/{key}")


class S3:
    """Amazon S3 and what speaks its protocol, through s3fs."""

    def __init__(self):
        package("s3fs", '"sedd_jax[s3]"', "An address s3://")
        client = {"connect_timeout": 10, "read_timeout": _REQUEST_SECONDS}
        # for half a minute, as gcsfs does: a run would not survive the default of a few seconds in
        # a save. The other modes of botocore do not try again after a 429 without a body, and
        # max_attempts it would replace in this very dict, by which fsspec knows its file systems
        client["retries"] = {"mode": "legacy", "total_max_attempts": 7}
        self.files = _file_system("s3", {"config_kwargs": client})

    def list(self, bucket: str, prefix: str) -> Iterator[tuple[str, Entry]]:
        token = {}
        while True:
            page = self.files.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
            for item in page.get("Contents", []):
                yield item["Key"], _s3_entry(item["Size"], item["ETag"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def entry(self, bucket, key):
        found = self.files.call_s3("head_object", Bucket=bucket, Key=key)
        return _s3_entry(found["ContentLength"], found["ETag"])

    def read(self, bucket, key, start, stop, version):
        options = dict(_range(start, stop).get("headers", {}))
        if version is not None:
            options["IfMatch"] = version

        async def read():
            answer = await self.files._call_s3("get_object", Bucket=bucket, Key=key, **options)
            async with answer["Body"] as stream:
                return await stream.read(), answer["ETag"]

        import fsspec.asyn

        return fsspec.asyn.sync(self.files.loop, read)

    def write(self, bucket, key, content, if_version):
        condition = {} if if_version is None else {"IfMatch": if_version}
        condition = {"IfNoneMatch": "*"} if if_version == ABSENT else condition
        return self.files.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)[
            "ETag"
        ]

    def delete(self, bucket, key, if_version):
        condition = {} if if_version is None else {"IfMatch": if_version}
        self.files.call_s3("delete_object", Bucket=bucket, Key=key, **condition)

    def upload(self, path, bucket, key):
        self.files.put_file(str(path), f"{bucket}/{key}", chunksize=2**32)


def _gcs_entry(item: dict[str, Any]) -> Entry:
    md5 = item.get("md5Hash")
    return Entry(
        int(item["size"]), str(item["generation"]), base64.b64decode(md5).hex() if md5 else None
    )


def _s3_entry(size: int, tag: str) -> Entry:
    md5 = tag.strip('"')
    return Entry(size, tag, md5 if re.fullmatch("[0-9a-f]{32}", md5) else None)


def _range(start: int, stop: int | None) -> dict[str, Any]:
    if start == 0 and stop is None:
        return {}
    return {"headers": {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}}


def _whole(content: bytes, headers: Any) -> bytes:
    """Returns the content, unless it was cut short."""
    length = headers.get("Content-Length")
    if length is not None and int(length) != len(content) and not headers.get("Content-Encoding"):
        raise ConnectionError(f"the answer has {len(content)} of {length} bytes")
    return content


def _file_system(name: str, defaults: dict[str, Any], **options: Any) -> Any:
    """Returns fsspec's file system of a name, the one that libraries get too.

    Its listings are not cached: others write in the bucket, and TensorStore does beside it.
    """
    import fsspec

    for logger in ("gcsfs", "s3fs", "aiobotocore", "botocore"):  # pages of what is raised later
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    known = fsspec.config.conf.setdefault(name, {})
    for option, value in {**defaults, "use_listings_cache": False}.items():
        known.setdefault(option, value)
    return fsspec.filesystem(name, **options)


STORES: dict[str, type[ObjectStore]] = {"gs": Gcs, "s3": S3}
