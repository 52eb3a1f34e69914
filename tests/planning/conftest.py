"""A training step on the 8 CPU devices, planned as if they were eight GPUs of a node."""

import dataclasses

import pytest

from sedd_jax.experiment.config import MeshConfig
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.planning.estimate import estimate
from sedd_jax.planning.lower import train_program
from sedd_jax.planning.topology import parse_topology


@pytest.fixture(scope="package")
def node():
    return parse_topology("h100:1x8")


@pytest.fixture(scope="package")
def planned(smoke_config):
    """The config on a mesh of two axes, and the mesh."""
    # no product is made twice, and every chip has whole blocks of rows
    sizes = dict(remat="none", dropout=0.0, hidden_size=128, cond_dim=64, num_heads=4, length=128)
    config = dataclasses.replace(
        smoke_config,
        mesh=MeshConfig(data=2, fsdp=4),
        model=dataclasses.replace(smoke_config.model, **sizes),
        train=dataclasses.replace(smoke_config.train, batch_size=32),
    )
    return config, build_mesh(config.mesh)


@pytest.fixture(scope="package")
def training(planned):
    return train_program(planned[0], 257, planned[1])


@pytest.fixture(scope="package")
def compiled(training):
    # only the text counts: not optimising what comes after it takes a third of the time
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return training.lowered.compile(compiler_options=quick)


@pytest.fixture(scope="package")
def estimated(compiled, training, node):
    """Its estimate, at 2 dollars an hour of a chip."""
    lowered = type("Lowered", (), {"compile": lambda self: compiled})()
    found = estimate(training._replace(lowered=lowered), node, price=2.0)
    return found._replace(program=training)
