#!/bin/bash
# ml_collections 1.1.0: assigning a dict to a branch of a LOCKED ConfigDict replaces the branch: keys that
# it lacks are gone, keys that never were are there, and the new branch is not locked.
#
# Why it surprises: lock() is there to refuse keys that the config does not have, and does so one by one
# (`config.optim.no = 1`); update() with the same dict merges. One would guess an error for the new key,
# or a merge. Configs from files are locked, and the flag --config.optim='{"learning_rate": 1}' does it.
#
# Output seen:
#   config.optim.no = 1: AttributeError
#   config.optim = {"learning_rate": 1}: {'learning_rate': 1}
#   then config.optim.no = 1: {'learning_rate': 1, 'no': 1}, locked: False
#   update(): {'lr': 2, 'warmup': 10}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q ml_collections==1.1.0 absl-py==2.5.1 PyYAML==6.0.4
cd "$folder"
env/bin/python - <<'PYTHON'
from ml_collections import ConfigDict


def locked():
    return ConfigDict({"optim": {"lr": 1, "warmup": 10}}).lock()


config = locked()
try:
    config.optim.no = 1
except AttributeError as error:
    print(f"config.optim.no = 1: {type(error).__name__}")
config.optim = {"learning_rate": 1}
assert config.is_locked
print(f'config.optim = {{"learning_rate": 1}}: {config.optim.to_dict()}')
assert config.optim.to_dict() == {"learning_rate": 1}, "the behaviour has changed"
config.optim.no = 1
print(f"then config.optim.no = 1: {config.optim.to_dict()}, locked: {config.optim.is_locked}")
assert not config.optim.is_locked, "the behaviour has changed"
config = locked()
config.update({"optim": {"lr": 2}})
print(f"update(): {config.optim.to_dict()}")
PYTHON
