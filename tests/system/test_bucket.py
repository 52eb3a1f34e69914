"""Operations on objects, in memory and by the clients against servers that fail."""

import subprocess
import sys

import pytest

from sedd_jax.errors import BadInput, Halted
from sedd_jax.system import bucket
from sedd_jax.system.bucket import ABSENT, Address, Conflict, is_address, parse
from tests.proxy import WRITES, cut_answer, lose_answer, refuse, reset


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("gs://b/k", True), ("s3://b", True), ("gs:/b", True), ("runs/a", False), ("/a:b/c", False),
     ("data/owt:3", False), ("C:x", False), ("http://b/k", True)],
)  # fmt: skip
def test_what_is_an_address(name, is_one):
    assert is_address(name) == is_one


def test_parts_of_an_address():
    address = parse("gs://bucket/runs//a/")
    assert address == Address("gs", "bucket", "runs//a") and address.name == "a"
    assert str(address / "config.json") == "gs://bucket/runs//a/config.json"
    assert str(parse("s3://bucket/") / "x") == "s3://bucket/x"


@pytest.mark.parametrize("name", ["gs:/b/k", "gs://", "http://b/k", "az://b/k", "runs/a"])
def test_no_address(name):
    with pytest.raises(BadInput, match=r"^--workdir is .*begins with gs://BUCKET/ or s3://"):
        parse(name, "--workdir")


@pytest.fixture
def place(cloud):
    return parse(cloud.address) / "runs/a"


@pytest.mark.slow
def test_objects_are_written_read_listed_and_deleted(place, tmp_path):
    assert bucket.entries(place) == {}
    bucket.write(place / "x y/ä+.txt", b"hello world")
    assert bucket.read(place / "x y/ä+.txt")[0] == b"hello world"
    assert bucket.read(place / "x y/ä+.txt", 2, 5)[0] == b"llo"
    (tmp_path / "up").write_bytes(bytes(range(256)) * 5000)
    bucket.upload(tmp_path / "up", place / "big")
    found = bucket.entries(place)
    assert set(found) == {"big", "x y/ä+.txt"}
    assert found["big"] == bucket.entry(place / "big")
    bucket.download(place / "big", tmp_path / "in/down", found["big"])
    assert (tmp_path / "in/down").read_bytes() == (tmp_path / "up").read_bytes()
    bucket.move(place, place._replace(key="runs/b"), first="big")
    assert bucket.entries(place) == {}
    assert set(bucket.entries(place._replace(key="runs/b"))) == set(found)
    bucket.delete(place / "gone")
    with pytest.raises(FileNotFoundError):
        bucket.read(place / "gone")


@pytest.mark.slow
def test_a_write_may_need_a_version(place):
    first = bucket.write(place, b"1", ABSENT)
    for wrong in (ABSENT, "123" if place.scheme == "gs" else '"0123"'):
        with pytest.raises(Conflict):
            bucket.write(place, b"2", wrong)
    second = bucket.write(place, b"2", first)
    with pytest.raises(Conflict):
        bucket.write(place, b"3", first)
    assert bucket.read(place) == (b"2", second)
    with pytest.raises((Conflict, FileNotFoundError)):  # at Google it is another object
        bucket.read(place, 0, 1, first)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [refuse(503), refuse(429), reset, cut_answer])
def test_what_passes_is_tried_again(harm, place, cloud):
    bucket.write(place, b"content")
    cloud.proxy.inject(harm, "GET", times=2)
    assert bucket.read(place)[0] == b"content"
    cloud.proxy.inject(harm, WRITES, times=2)
    bucket.write(place, b"more")
    assert bucket.read(place)[0] == b"more"


@pytest.mark.slow
def test_an_answer_that_is_lost_looks_like_a_conflict_with_itself(place, cloud):
    cloud.proxy.inject(lose_answer, WRITES, times=1)
    with pytest.raises(Conflict):
        bucket.write(place, b"mine", ABSENT)
    assert bucket.read(place)[0] == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "refuses the access"), (401, "refuses the credentials"), (404, "There is no bucket")],
)
def test_what_does_not_pass_is_one_sentence(status, words, place, cloud, monkeypatch):
    monkeypatch.setattr(bucket, "patience", lambda: 1)
    cloud.proxy.inject(refuse(status), WRITES)
    with pytest.raises(BadInput, match=words):
        bucket.write(place, b"content")
    cloud.proxy.heal()
    assert bucket.entries(place) == {}


@pytest.mark.slow
@pytest.mark.unsteady
def test_patience_ends(place, cloud, monkeypatch, capsys):
    monkeypatch.setattr(bucket, "patience", lambda: 4)
    cloud.proxy.inject(reset)
    with pytest.raises(Halted, match="has not answered for .* s .*run the same command again"):
        bucket.entries(place)
    assert capsys.readouterr().err.count("does not answer") <= 1


@pytest.mark.slow
def test_objects_that_others_write_are_listed_at_once(place, cloud):
    """By etils too, which Orbax asks: gcsfs would keep its first listing for good."""
    from etils import epath

    other = "from sedd_jax.system import bucket; import sys;"
    other += "bucket.write(bucket.parse(sys.argv[1]), b'')"
    folder = epath.Path(str(place))
    for name in ("1", "2"):
        subprocess.run([sys.executable, "-c", other, str(place / name / "done")], check=True)
        assert max(path.name for path in folder.iterdir()) == name
        assert f"{name}/done" in bucket.entries(place)


@pytest.mark.slow
def test_one_listing_answers_many_questions(place, cloud):
    from etils import epath

    for name in ("1/done", "2/done"):
        bucket.write(place / name, b"")
    folder = epath.Path(str(place))
    cloud.proxy.requests.clear()
    with bucket.listed(place):
        assert (folder / "1").is_dir() and (folder / "2/done").exists()
        assert not (folder / "3").exists() and not (folder / "3/done").exists()
        assert len(cloud.proxy.requests) <= (1 if place.scheme == "gs" else 3)  # of what is absent
    bucket.write(place / "3/done", b"")
    assert (folder / "3/done").exists()


def test_credentials_that_are_missing_are_a_sentence(monkeypatch):
    class DefaultCredentialsError(Exception):  # by its name alone: of google.auth
        pass

    def opened(scheme):
        raise DefaultCredentialsError("Your default credentials were not found.\nSee")

    monkeypatch.setattr(bucket, "_opened", opened)
    words = (
        r"^gs://b/run needs credentials, and there are none \(Your default .* found\)\. Run `gcl"
    )
    with pytest.raises(BadInput, match=words):
        bucket.entries(bucket.parse("gs://b/run"))


@pytest.mark.parametrize("text", ["two", "", "0", "nan", "inf"])
def test_seconds_in_the_environment_are_positive_numbers(text, monkeypatch):
    monkeypatch.setenv("SEDD_JAX_BUCKET_PATIENCE", text)
    with pytest.raises(BadInput, match=f"SEDD_JAX_BUCKET_PATIENCE is '{text}' in the environment"):
        bucket.patience()
