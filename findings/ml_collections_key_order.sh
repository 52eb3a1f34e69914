#!/bin/bash
# ml_collections 1.1.0: a ConfigDict iterates over its keys in alphabetical order. sort_keys=False keeps
# the order of insertion of its own keys, not of dicts below it, and a copy or a frozen one sorts again.
#
# Why it surprises: it is made from dicts and gives dicts back (to_dict, items, **config), and those keep
# their order; an option to keep it would be guessed to hold for the whole tree and for its copies. So
# the layers or the rows of a table that a config lists come out in another order, with no word.
#
# Output seen:
#   ConfigDict: a, b
#   to_dict(): a, b
#   sort_keys=False: b, a
#   a dict below it: a, b
#   its copy: a, b
#   frozen: a, b
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q ml_collections==1.1.0 absl-py==2.5.1 PyYAML==6.0.4
cd "$folder"
env/bin/python - <<'PYTHON'
from ml_collections import ConfigDict, FrozenConfigDict

given = {"b": 1, "a": 2}
kept = ConfigDict(given, sort_keys=False)
found = {
    "ConfigDict": ConfigDict(given),
    "to_dict()": ConfigDict(given).to_dict(),
    "sort_keys=False": kept,
    "a dict below it": ConfigDict({"below": given}, sort_keys=False).below,
    "its copy": kept.copy_and_resolve_references(),
    "frozen": FrozenConfigDict(kept),
}
for name, config in found.items():
    print(f"{name}: {', '.join(config)}")
sorts = [list(config) == ["a", "b"] for config in found.values()]
assert sorts == [True, True, False, True, True, True], "the behaviour has changed"
PYTHON
