"""Single files that a program writes, here or in a bucket."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from sedd_jax.errors import BadInput
from sedd_jax.system import bucket, mirror
from sedd_jax.system.bucket import ABSENT, Conflict, is_address, parse


@contextlib.contextmanager
def opened_file(name: str | os.PathLike[str], flag: str, beside: str = "") -> Iterator[Path]:
    """Holds a file to write: a local one as it is, or one in a mirror of the folder it is in.

    Nothing is fetched or uploaded before `mirror.synced`, of that folder.

    Args:
      name: a path or an address.
      flag: the flag that names it, for messages.
      beside: the ending of a second file, beside it, that is written too.

    Raises:
      BadInput: the address is not one, or only that of a bucket.
    """
    if not is_address(name):
        yield Path(name)
        return
    address = parse(name, flag)
    folder, _, file = address.key.rpartition("/")
    if not file:
        raise BadInput(f"{flag} is {name}, which is a bucket: add the name of a file in it.")
    only = tuple(dict.fromkeys((file, file + beside)))
    with mirror.opened(str(address._replace(key=folder)), flag, only) as above:
        yield above / file


@contextlib.contextmanager
def output_file(name: str | os.PathLike[str], flag: str) -> Iterator[Path]:
    """Holds a file to write, for a single process; one in a bucket is uploaded at the end.

    Args:
      name: a path or an address.
      flag: the flag that names it, for messages.

    Raises:
      BadInput: the address is not one, or the bucket cannot be written.
      Halted: it does not answer.
    """
    with opened_file(name, flag) as path, mirror.synced(path.parent, flag):
        yield path


def create(source: Path, path: Path) -> None:
    """Gives a finished file, which is beside it, its name, unless that is taken.

    Raises:
      FileExistsError: it is taken; the file keeps the name it had.
    """
    address = mirror.address_of(path)
    if address is None:
        os.link(source, path)  # unlike a rename, it fails if the name is taken
        source.unlink()
        return
    content = source.read_bytes()
    try:
        with mirror.keeping(path):
            bucket.write(address, content, ABSENT)
    except Conflict as error:
        if bucket.read(address)[0] != content:  # else it is this write, whose answer was lost
            bucket.upload(source, mirror.address_of(source))
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
    source.unlink()
