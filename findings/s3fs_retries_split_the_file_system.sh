#!/bin/bash
# s3fs 2026.9.0 with fsspec 2026.9.0 and botocore 1.43.117: a number of retries gives a second file system.
#
# fsspec keeps file systems: the same arguments, or the same defaults in fsspec.config.conf, give the same
# object, and libraries that know nothing of each other share its connections and its listings. With
# config_kwargs={"retries": {"max_attempts": 6}} this holds until the first connection. Then botocore takes
# max_attempts out of the caller's own dict and puts total_max_attempts (7) there, and fsspec, which knows
# its file systems by a hash of the arguments, finds no such one: everybody who asks from now on gets another
# object, with connections and listings of its own. Other options (timeouts) are left as they are.
#
# Why it surprises: botocore is handed a Config by s3fs and no dict of ours; the same call gives the same
# object in a test that sends no request, and another one in the program that does.
#
# Output seen:
#   before the first connection  the same file system, {'mode': 'standard', 'max_attempts': 6}
#   after it                     another file system, {'mode': 'standard', 'total_max_attempts': 7}
#   with total_max_attempts      the same file system, {'mode': 'standard', 'total_max_attempts': 7}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q s3fs==2026.9.0 fsspec==2026.9.0 botocore==1.43.117
cat > "$folder/ask.py" <<'PY'
import fsspec


def tell(when, first, retries):
    same = fsspec.filesystem("s3") is first
    print(f"{when:28} {'the same' if same else 'another'} file system, {retries}")


for name, number, whens in (
    ("max_attempts", 6, ("before the first connection", "after it")),
    ("total_max_attempts", 7, (None, "with total_max_attempts")),
):
    retries = {"mode": "standard", name: number}
    fsspec.config.conf["s3"] = {"anon": True, "config_kwargs": {"retries": retries}}
    files = fsspec.filesystem("s3")
    if whens[0]:
        tell(whens[0], files, retries)
    files.connect()
    tell(whens[1], files, retries)
PY
found=$("$folder/env/bin/python" "$folder/ask.py")
echo "$found"
[[ $found == *"before the first connection  the same"*"after it                     another"*"with total_max_attempts      the same"* ]]
