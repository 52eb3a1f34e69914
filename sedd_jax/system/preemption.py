"""Notices that this machine is about to be taken away, from the metadata servers of clouds.

Google sends a virtual machine that it preempts a shutdown 30 s later, and says so in the value
`preempted`; Amazon gives spot instances two minutes. Kubernetes has no notice: it sends SIGTERM,
`terminationGracePeriodSeconds` before it kills.

References:
  https://cloud.google.com/compute/docs/instances/preemptible#preemption-process
  https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import contextlib
import datetime
import email.message
import http.client
import json
import os
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from sedd_jax.errors import first_line, warn

PREEMPTION_SECONDS = 30.0  # from Google's notice to the end
MAINTENANCE_SECONDS = 60.0  # at least; machines with accelerators have an hour
INTERRUPTION_SECONDS = 120.0  # from Amazon's notice
_VENDOR = Path("/sys/class/dmi/id/sys_vendor")  # who made this machine
_REQUEST_SECONDS = 5
_HANGING_SECONDS = 60  # Google's server answers after this time even if nothing changes
_PAUSE_SECONDS = 5  # between requests, as Amazon recommends, and after one that failed
_FAILURES = 3  # in a row before any answer, after which no notice is expected
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this server

Notice = tuple[str, float]  # what happens, as a clause, and in how many seconds


@contextlib.contextmanager
def watched(heed: Callable[[float], None]) -> Iterator[None]:
    """Watches for notices on machines of Google and Amazon, in threads, until the end of the body.

    Elsewhere nothing is asked. GCE_METADATA_HOST and AWS_EC2_METADATA_SERVICE_ENDPOINT name other
    servers, and NO_GCE_CHECK=true and AWS_EC2_METADATA_DISABLED=true none, as for the clients of
    these clouds.

    Args:
      heed: called in a thread with the seconds that are left.
    """
    watch = _Watch(heed)
    for work in watch.sources():
        threading.Thread(target=watch.follow, args=(work,), daemon=True).start()
    try:
        yield
    finally:
        watch.ended.set()


class _Watch:
    """The threads of `watched`."""

    def __init__(self, heed: Callable[[float], None]):
        self._heed, self.ended, self._mutex = heed, threading.Event(), threading.Lock()

    def sources(self) -> list[Callable[[], Iterator[Notice | None]]]:
        """Returns what can be asked here: iterators over answers, None for one without a notice."""
        vendor = _VENDOR.read_text().strip() if _VENDOR.is_file() else ""
        environment = os.environ.get
        google = environment("GCE_METADATA_HOST")
        if not google and vendor == "Google" and environment("NO_GCE_CHECK") != "true":
            google = "metadata.google.internal"
        amazon = environment("AWS_EC2_METADATA_SERVICE_ENDPOINT")
        if not amazon and vendor == "Amazon EC2":
            amazon = "http://169.254.169.254"
        sources = []
        if google:
            sources += [lambda: _preempted(google), lambda: _maintained(google)]
        if amazon and environment("AWS_EC2_METADATA_DISABLED") != "true":
            sources.append(lambda: _interrupted(amazon.rstrip("/")))
        return sources

    def follow(self, source: Callable[[], Iterator[Notice | None]]) -> None:
        """Passes the first notice of a source on."""
        failures, answered = 0, False
        while not self.ended.is_set():
            try:
                for notice in source():
                    answered = True
                    if notice:
                        return self._pass_on(*notice)
                    if self.ended.is_set():
                        return
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                failures += 1
                if failures == _FAILURES and not answered:
                    warn(f"no notice of a preemption can be had here ({first_line(error)})")
                    return
            self.ended.wait(_PAUSE_SECONDS)

    def _pass_on(self, text, seconds):
        with self._mutex:
            if not self.ended.is_set():
                self.ended.set()  # the first one of any source
                print(
                    f"{text} in {seconds:.0f} s: stopping after this step.",
                    file=sys.stderr,
                    flush=True,
                )
                self._heed(seconds)


def _preempted(host):
    """The answers of Google's server about preemption."""
    for value in _changes(host, "preempted"):
        yield ("Google preempts this machine", PREEMPTION_SECONDS) if value == "TRUE" else None


def _maintained(host):
    """The answers of Google's server about maintenance that ends this machine, perhaps in an hour.

    A run that starts on a machine of which this is known goes on: it would only start again there.
    """
    known = None
    for value in _changes(host, "maintenance-event"):
        ends = value == "TERMINATE_ON_HOST_MAINTENANCE"
        if ends and known is None:
            warn("Google is about to stop this machine for maintenance; nothing is done about it")
        known, before = value, known
        new = ends and before not in (None, value)
        text = "Google stops this machine for maintenance"
        yield (text, MAINTENANCE_SECONDS) if new else None


def _changes(host, key):
    """A value of Google's server, at once, after every change, and once a minute."""
    etag = "NONE"
    while True:
        query = urllib.parse.urlencode(
            {"wait_for_change": "true", "last_etag": etag, "timeout_sec": _HANGING_SECONDS}
        )
        url = f"http://{host}/computeMetadata/v1/instance/{key}?{query}"
        patience = _REQUEST_SECONDS + (0 if etag == "NONE" else _HANGING_SECONDS)
        text, headers = _ask(url, {"Metadata-Flavor": "Google"}, patience)
        etag = headers.get("ETag", "NONE")
        yield text.strip()


def _interrupted(server):
    """The answers of Amazon's server about the end of a spot instance."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
    token, _ = _ask(f"{server}/latest/api/token", lifetime, _REQUEST_SECONDS, "PUT")
    url = f"{server}/latest/meta-data/spot/instance-action"
    try:
        text, _ = _ask(url, {"X-aws-ec2-metadata-token": token}, _REQUEST_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 404:  # what it answers as long as there is no notice
            raise
        yield None
    else:
        action = json.loads(text)
        end = datetime.datetime.fromisoformat(action["time"])
        left = (end - datetime.datetime.now(datetime.UTC)).total_seconds()
        seconds = min(max(left, 0.0), INTERRUPTION_SECONDS)
        yield f"Amazon is going to {action['action']} this machine", seconds


def _ask(
    url: str, headers: dict[str, str], patience: float, method: str = "GET"
) -> tuple[str, email.message.Message]:
    """Returns the text and the headers of an answer of a metadata server."""
    request = urllib.request.Request(url, headers=headers, method=method)
    with _DIRECT.open(request, timeout=patience) as answer:
        return answer.read().decode(), answer.headers
