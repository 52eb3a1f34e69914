"""Claims on guided true scores, on smaller spaces; and that they fail when they should."""

import pytest

from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.guidance import times_evidence
from sedd_jax.experiment.build import build_graph
from sedd_jax.verification import guidance
from sedd_jax.verification.exact import guided
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.guidance import check_guidance

CLAIMS = {"absorb": 10, "uniform": 8}


@pytest.fixture
def section(monkeypatch):
    monkeypatch.setattr(guidance, "WEIGHTS", (1.0, 2.0))
    monkeypatch.setattr(guidance, "EVALUATIONS", (32,))

    def check(graph):
        space = Space(build_graph(graph, 3), 2)
        return check_guidance(space, noises.loglinear(), space.random_data(0), t_min=1e-3)

    return check


@pytest.mark.slow
@pytest.mark.parametrize("graph", CLAIMS)
def test_claims_on_guidance(graph, section):
    claims = section(graph).claims
    assert [claim for claim in claims if not claim.holds] == []
    assert len(claims) == CLAIMS[graph]


@pytest.mark.slow
def test_a_power_of_the_evidence_is_seen(section, monkeypatch):
    def too_much(score_fn, evidence, power, *rest):
        return times_evidence(score_fn, evidence, 1.1 * power, *rest)

    monkeypatch.setattr(guided, "times_evidence", too_much)
    failed = [claim.statement for claim in section("uniform").claims if not claim.holds]
    assert len(failed) == 2 and all("classifier" in s or "independent" in s for s in failed)
