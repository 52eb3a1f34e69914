"""Operations on objects: errors as sentences."""

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system import bucket


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
