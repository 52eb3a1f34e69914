"""The ways to name groups of devices, against groups written out by hand."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from sedd_jax.errors import BadInput
from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.groups import axes_of, groups_of

ROWS = [[0, 1, 2, 3], [4, 5, 6, 7]]
COLUMNS = [[0, 4], [1, 5], [2, 6], [3, 7]]


def groups(attributes):
    return groups_of(hlo.Instruction("x.1", "all-reduce", (), (), attributes), 8).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ROWS),
        ("{}", [list(range(8))]),
        ("[2,4]<=[8]", ROWS),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("[1,8]<=[8]", [list(range(8))]),
        ("mesh['a'=2,'b'=4] {'b'}", ROWS),
        ("mesh['a'=2,'b'=4] {'a'}", COLUMNS),
        ("mesh['a'=8,'b'=1] {'a','b'}", [list(range(8))]),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", ROWS),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", COLUMNS),
        ("mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", [[3, 1], [2, 0]]),
        # parts of an axis of 8: the middle 2 of 2 x 2 x 2, then the first 2 of 2 x 4
        ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=8] {'a':(1)2}", COLUMNS),
    ],
)
def test_every_way_to_write_groups(text, expected):
    assert groups(f", channel_id=3, replica_groups={text}, use_global_device_ids=true") == expected


def test_a_permutation_has_pairs():
    assert groups(", channel_id=1, source_target_pairs={{0,1},{1,0}}") == [[0, 1], [1, 0]]


def test_other_ways_are_refused():
    with pytest.raises(BadInput, match=r"not understood \(which devices x\.1 names\)"):
        groups(", replica_groups=by_some_other_rule")


@pytest.mark.parametrize(
    ("found", "axes"),
    [
        (ROWS, ("fsdp",)),
        (COLUMNS, ("data",)),
        ([list(range(8))], ("data", "fsdp")),
        ([[0, 1], [2, 3], [4, 5], [6, 7]], ("fsdp",)),  # a part of an axis
        ([[0, 0], [3, 7]], ("data",)),  # pairs, one of which stays where it is
    ],
)
def test_groups_extend_along_axes_of_the_mesh(found, axes):
    devices = np.array(jax.devices()).reshape(1, 2, 4, 1)
    mesh = Mesh(devices, ("slice", "data", "fsdp", "tensor"))
    assert axes_of(np.array(found), mesh) == axes
