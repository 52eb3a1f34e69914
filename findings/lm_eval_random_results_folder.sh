#!/bin/bash
# lm_eval 0.4.13: results of different models lie in one folder under one "random" name.
#
# --output_path=FOLDER holds a folder for each model, named by the model argument pretrained (or peft,
# delta, model, path, engine). A model without any of these gets a random name of 8 characters, so that
# it has a folder of its own. But the harness seeds Python's random numbers (with 0, unless --seed says
# otherwise) shortly before it draws the name: every unnamed model, of whatever arguments, on whatever
# machine, gets the same 8 characters.
#
# Why it surprises: a name drawn at random is the promise that two models do not share it. Sweeps over
# models whose argument has another name (a backend of one's own, with checkpoint=...) end in one folder;
# files of different models differ by their time of day alone, and what reads "the latest results of a
# model" from that folder (its own script for result tables groups by it) takes one model for another.
#
# Output seen:
#   first run:  qdpv68r5/results
#   second run: qdpv68r5/results
#   third run (another seed): another name
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q lm_eval==0.4.13
cd "$folder"
mkdir tasks
printf '{"question": "One and one is", "answer": " two"}\n' > data.jsonl
cat > tasks/sums.yaml <<'YAML'
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: data.jsonl
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
YAML
export HF_HOME="$folder/hub" HF_DATASETS_OFFLINE=1
run() { # the folder of results, and the model's arguments
  local to="$1" arguments="$2"
  shift 2
  env/bin/lm_eval run --model=dummy --model_args "$arguments" --tasks=sums --include_path=tasks \
    --output_path="$to" "$@" > log.txt 2>&1 || { tail -5 log.txt; exit 1; }
  ls "$to"
}
first=$(run one checkpoint=small)
second=$(run two checkpoint=large)
third=$(run three checkpoint=large --seed=7)
echo "first run:  $first/results"
echo "second run: $second/results"
[ "$third" != "$second" ] && echo "third run (another seed): another name"
[ "$first" = "$second" ]
