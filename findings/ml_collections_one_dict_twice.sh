#!/bin/bash
# ml_collections 1.1.0: a dict that is given under two keys in one assignment becomes ONE branch under
# both. A flag that overrides a value of one of them changes the other; set one by one they are apart.
#
# Why it surprises: a ConfigDict converts dicts, the given one never changes again, and two
# statements `config.a = base; config.b = base` give two copies. One would guess the same of
# `config.rows = {"a": base, "b": base}`. There `--config.rows.a.lr=5` changes row b, with no word.
#
# Output seen:
#   in one assignment: a.lr = 5.0, b.lr = 5.0
#   one by one: a.lr = 5.0, b.lr = 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q ml_collections==1.1.0 absl-py==2.5.1 PyYAML==6.0.4
cd "$folder"
cat > config.py <<'PYTHON'
from ml_collections import ConfigDict

base = {"lr": 1.0}


def get_config(how):
    config = ConfigDict({"rows": {}})
    if how == "in one assignment":
        config.rows = {"a": base, "b": base}
    else:
        config.rows.a = base
        config.rows.b = base
    return config
PYTHON
cat > show.py <<'PYTHON'
import sys

from absl import flags
from ml_collections import config_flags

config = config_flags.DEFINE_config_file("config")
flags.FLAGS(sys.argv)
rows = config.value.rows
how = sys.argv[1].partition(":")[2]
print(f"{how}: a.lr = {rows.a.lr}, b.lr = {rows.b.lr}")
assert rows.b.lr == (5 if how == "in one assignment" else 1), "the behaviour has changed"
PYTHON
for how in "in one assignment" "one by one"; do
  env/bin/python show.py "--config=config.py:$how" --config.rows.a.lr=5
done
