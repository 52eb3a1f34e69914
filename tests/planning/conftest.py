"""A training step on the 8 CPU devices, planned as if they were eight GPUs of a node."""

import dataclasses

import pytest

from sedd_jax.planning.programs import train_program
from sedd_jax.planning.target import parse_target
from sedd_jax.runtime.config import MeshConfig
from sedd_jax.runtime.sharding import build_mesh


@pytest.fixture(scope="package")
def node():
    return parse_target("h100:1x8")


@pytest.fixture(scope="package")
def planned(smoke_config):
    """The config on a mesh of two axes, and the mesh."""
    config = dataclasses.replace(smoke_config, mesh=MeshConfig(data=2, fsdp=4))
    return config, build_mesh(config.mesh)


@pytest.fixture(scope="package")
def training(planned):
    return train_program(planned[0], 257, planned[1])
