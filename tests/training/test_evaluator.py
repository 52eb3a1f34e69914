"""The held-out blocks of a run: how many there are at a time."""

import pytest

from sedd_jax.data.documents import Recipe
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, EvalConfig, MeshConfig
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.training.evaluator import Evaluator


@pytest.fixture
def evaluator(tmp_path):
    """Of held-out bytes, in blocks of 8."""

    def evaluator(held_out, wanted, parts):
        for name, size in (("train", 400), ("heldout", held_out)):
            (tmp_path / f"{name}.txt").write_text("a" * size)
        recipe = Recipe(f"{tmp_path}/train.txt", heldout_corpus=f"{tmp_path}/heldout.txt")
        dataset = prepare_blocks(tmp_path / "data", recipe, 8)
        config = EvalConfig(batch_size=wanted, max_blocks=64)
        mesh = build_mesh(MeshConfig(data=parts, tensor=8 // parts))
        return Evaluator(build_family(Config(), 257), dataset, run_keys(0), mesh, config, 1e-3)

    return evaluator


@pytest.mark.parametrize(("wanted", "parts", "found"), [(64, 1, 10), (64, 4, 8), (4, 2, 4)])
def test_few_blocks_make_a_smaller_batch_and_are_told(evaluator, capsys, wanted, parts, found):
    batches = evaluator(80, wanted, parts)._batches
    assert [len(tokens) for (tokens,) in batches] == [found] * (10 // found)
    message = "eval.batch_size is 64, but the held-out split has 10 block(s) of 8 tokens: a batch"
    err = capsys.readouterr().err
    assert (message in err) == (wanted == 64)
    assert ("2 held-out blocks are left out: 10 are no multiple" in err) == (wanted == 4)


def test_fewer_blocks_than_parts_of_the_mesh_are_refused(evaluator):
    with pytest.raises(BadInput, match=r"8 parts .* has 7 block.s. of 8 tokens; give more text"):
        evaluator(60, 8, 8)
