"""Bytes read and written, counted by hand; every number here is a float32 of 4 bytes."""

import pytest

from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.traffic import traffic

FUSED = """\
%fused (p.0: f32[24,10], p.1: f32[24,10], p.2: s32[], p.3: f32[10], p.4: f32[7]) -> f32[10] {
  %p.0 = f32[24,10] parameter(0)
  %p.1 = f32[24,10] parameter(1)
  %p.2 = s32[] parameter(2)
  %p.3 = f32[10] parameter(3)
  %p.4 = f32[7] parameter(4)
  %bitcast.0 = f32[240] bitcast(%p.0)
  %dynamic-slice.1 = f32[10] dynamic-slice(%bitcast.0, %p.2), dynamic_slice_sizes={10}
  %add.1 = f32[10] add(%dynamic-slice.1, %p.3)
  %bitcast.1 = f32[1,10] bitcast(%add.1)
  %dynamic-update-slice.1 = f32[24,10] dynamic-update-slice(%p.1, %bitcast.1, %p.2)
  ROOT %tuple.1 = (f32[10], f32[24,10]) tuple(%add.1, %dynamic-update-slice.1)
}

%turned (r.0: bf16[30,8], r.1: f32[6]) -> (f32[10,8], f32[6], f32[6]) {
  %r.0 = bf16[30,8] parameter(0)
  %r.1 = f32[6] parameter(1)
  %transpose.1 = bf16[8,30] transpose(%r.0), dimensions={1,0}
  %convert.1 = f32[8,30] convert(%transpose.1)
  %slice.1 = f32[8,10] slice(%convert.1), slice={[0:8], [0:10]}
  %negate.1 = f32[8,10] negate(%slice.1)
  %copy.1 = f32[6] copy(%r.1)
  ROOT %tuple.2 = (f32[8,10], f32[6]) tuple(%negate.1, %copy.1)
}

ENTRY %main (a: f32[]) -> f32[] {
  %a = f32[24,10] parameter(0)
  %i = s32[] parameter(1)
  %b = f32[10] parameter(2)
  %c = f32[7] parameter(3)
  %cut = f32[1,10] dynamic-slice(%a, %i), dynamic_slice_sizes={1,10}
  %put = f32[24,10] dynamic-update-slice(%a, %cut, %i)
  %add = f32[24,10] add(%a, %put)
  %fusion = (f32[10], f32[24,10]) fusion(%a, %put, %i, %b, %c), kind=kLoop, calls=%fused
  %d = bf16[30,8] parameter(4)
  %e = f32[6] parameter(5)
  %third = (f32[8,10], f32[6]) fusion(%d, %e), kind=kInput, calls=%turned
  ROOT %scatter = f32[24,10] scatter(%a, %i, %cut), to_apply=%sum
}
"""


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("cut", 10 + 1 + 10),
        ("put", 10 + 1 + 10),  # in place
        ("add", 3 * 240),
        ("fusion", 10 + 1 + 10 + 10 + 10),  # the cut, where, p.3; the sum, and it again in p.1
        ("third", 80 / 2 + 80 + 6 + 6),  # a third, of 2 bytes each, in another order
        ("scatter", 1 + 10 + 10),
    ],
)
def test_only_what_is_taken_and_put_counts(name, numbers):
    module = hlo.read(FUSED)
    assert traffic(module, "main", module.computations["main"][name]) == 4 * numbers
