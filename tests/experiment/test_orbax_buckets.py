"""The private parts of Orbax that runs in S3 need, and a version that lacks them."""

import pytest
from orbax.checkpoint._src.path import atomicity, gcs_utils

from sedd_jax.errors import BadInput
from sedd_jax.experiment import orbax_buckets

UNKNOWN = r"^Orbax \S+ cannot be taught to write to s3:// .*pip install orbax-checkpoint==0\.12\.8"


@pytest.mark.parametrize(
    ("module", "part", "use"),
    [
        (gcs_utils, "get_kvstore_for_gcs", orbax_buckets.teach_s3),
        (atomicity, "CommitFileTemporaryPath", orbax_buckets.temporary_path_class),
    ],
)
def test_a_version_without_a_part_is_refused_in_one_sentence(module, part, use, monkeypatch):
    from orbax.checkpoint._src.serialization import tensorstore_utils

    monkeypatch.setattr(tensorstore_utils, "_knows_s3", False, raising=False)
    monkeypatch.delattr(module, part)
    with pytest.raises(BadInput, match=UNKNOWN):
        use()
