import http.server
import json
import pathlib
import shutil
import sys
import threading
import time

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system import hub

constants = pytest.importorskip("huggingface_hub.constants")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"not wanted"}
WANTED = ("*.json", "model.safetensors")


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers for owner/name, as far as a download asks; else 404."""

    requests: tuple | list = ()

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.requests.append(self.path)
        tree = [{"type": "file", "path": n, "size": len(x), "oid": n} for n, x in FILES.items()]
        pages = {
            "/": b"",
            "/api/models/owner/name/revision/main": json.dumps({"id": "x", "sha": COMMIT}).encode(),
            f"/api/models/owner/name/tree/{COMMIT}": json.dumps(tree).encode(),
        }
        pages |= {f"/owner/name/resolve/{COMMIT}/{name}": data for name, data in FILES.items()}
        page = pages.get(self.path.partition("?")[0])
        self.send_response(404 if page is None else 200)
        if page is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("ETag", f'"{self.path.rpartition("/")[2]}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(page or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub at which nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    point_at(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.fixture
def server(cache, monkeypatch):
    """A hub with one repository; the value is what it was asked for."""
    handler = type("Handler", (Hub,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=[0.05])
        thread.start()
        point_at(monkeypatch, f"http://127.0.0.1:{listening.server_port}")
        yield handler.requests
        listening.shutdown()
        thread.join()


def point_at(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def has_weights(folder):
    return any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin"))


def fetched(name):
    return hub.folder(name, WANTED, has_weights)


def test_a_local_folder_is_itself(tmp_path):
    assert fetched(tmp_path) == tmp_path
    assert fetched(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["absent", "/absent/folder", "../absent", "a/b/c", "a/.b", "a/"])
def test_what_is_no_id_is_a_missing_folder(cache, name):
    with pytest.raises(BadInput) as raised:
        fetched(name)
    assert str(raised.value) == f"There is no folder {name}."


def test_a_repository_is_downloaded_once(server):
    folder = fetched("owner/name")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    asked = len(server)
    assert asked > 0
    assert fetched("owner/name") == folder
    assert fetched(f"owner/name@{COMMIT}") == folder
    assert len(server) == asked


def test_a_part_of_a_repository_is_completed_or_named(server, monkeypatch):
    (fetched("owner/name") / "model.safetensors").unlink()
    online = constants.ENDPOINT
    point_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=f"cached in part only, in .*{COMMIT}, .* cannot be reached"):
        fetched("owner/name")
    point_at(monkeypatch, online)
    assert (fetched("owner/name") / "model.safetensors").read_bytes() == b"weights"


def test_what_was_cached_file_by_file_is_completed_or_named(server, monkeypatch):
    """No listing of the repository tells then that something is missing."""
    folder = fetched("owner/name")
    shutil.rmtree(folder.parent.parent / "trees")
    asked = len(server)
    assert fetched("owner/name") == folder and len(server) == asked
    (folder / "model.safetensors").unlink()
    online = constants.ENDPOINT
    point_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=f"cached in part only, in .*{COMMIT}, .* cannot be reached"):
        fetched("owner/name")
    point_at(monkeypatch, online)
    assert (fetched("owner/name") / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("first", ["model.*", "model-*-of-*"])
def test_the_second_group_is_wanted_only_without_the_first(server, monkeypatch, first):
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"more"}
    monkeypatch.setitem(globals(), "FILES", files)
    either = (("absent", first), ("pytorch_model.bin",))
    for _ in range(2):  # from the hub, from the cache
        folder = hub.folder("owner/name", ["*.json"], has_weights, either)
        wanted = "model.safetensors" if first == "model.*" else "pytorch_model.bin"
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", wanted]
    assert sum(path.endswith(wanted) for path in server) == 2  # its size, and itself


def test_offline_is_found_out_quickly(cache):
    started = time.monotonic()
    with pytest.raises(
        BadInput, match=r"no folder owner/name, .*is not in the cache, and http.*:9 "
    ):
        fetched("owner/name")
    assert time.monotonic() - started < 5


def test_the_wish_to_stay_offline_is_respected(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="cannot be reached .*offline mode is enabled"):
        fetched("owner/name")
    assert not server


def test_an_unknown_repository_is_refused(server):
    with pytest.raises(BadInput, match=r"the hub refuses: 404 .*is the name right") as raised:
        fetched("owner/other")
    assert "\n" not in str(raised.value)


def test_without_the_package_the_command_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadInput, match=r'no folder owner/name; .*pip install "sedd_jax\[hub\]"'):
        fetched("owner/name")


def test_nothing_is_written_beside_the_cache(server, cache):
    assert cache in fetched("owner/name").parents
    assert not pathlib.Path("owner").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(BadInput, match="model.safetensors is a file; give the folder"):
        hub.folder(tmp_path / "model.safetensors", (), lambda folder: True)
