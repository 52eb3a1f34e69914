"""What errors of the clients of buckets mean, and what a user does about them."""

import contextlib
import textwrap

from sedd_jax.errors import first_line

_PASSING = (408, 429)  # and 5xx, and no status at all
_MACHINE = "; a machine of the cloud needs a service account or role with rights to this bucket."
_ADVICE = {
    "gs": "Run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS"
    + _MACHINE,
    "s3": "Run `aws configure` or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" + _MACHINE,
}


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status behind an error of gcsfs or s3fs."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):  # of botocore
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(error, FileExistsError):
        return 412
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):
        return 403
    with contextlib.suppress(TypeError, ValueError):
        return int(getattr(error, "code", None))
    return None


def lasting(error: BaseException, status: int | None, scheme: str) -> str | None:
    """Returns what is wrong and what to do, of an error that does not pass by itself.

    Args:
      error: of a client.
      status: see `status_of`.
      scheme: of the bucket, "gs" or "s3".

    Returns:
      A clause about the address and a sentence; None of an error that may pass.
    """
    advice = _ADVICE[scheme]
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}:
        return f"needs credentials, and there are none ({first_line(error)}). {advice}"
    if names & {"RefreshError"} or status == 401:
        return f"refuses the credentials, which may have expired ({brief(error)}). {advice}"
    if status == 403:
        return f"refuses the access: {brief(error)}. {advice}"
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return f"refuses the request: {brief(error)}."
    if status is None and isinstance(error, ValueError | TypeError | AttributeError | KeyError):
        if "Bad Request" not in str(error):
            raise error
        return f"refuses the request: {brief(error)}."
    return None


def brief(error: BaseException) -> str:
    """Returns what an error says itself: it may be met while another one is handled."""
    return textwrap.shorten(str(error) or repr(error), 240, placeholder=" ...").rstrip(".")
