#!/usr/bin/env bash
# A job on TPU slices of a GKE cluster, as a JobSet by kubectl; -h says how.
set -euo pipefail
# shellcheck source=launch/command.sh
. "$(dirname "$0")/command.sh"

usage() {
  cat << USAGE
Usage: launch/jobset.sh train|sample --name=NAME --image=IMAGE --tpu=TYPE --topology=SHAPE [OPTIONS] -- FLAGS

Creates a JobSet by kubectl: python -m sedd_jax.train (or .sample) FLAGS on every host of TPU slices of
a GKE cluster, which needs JobSet's controller and nothing of xpk; the hosts find each other. What
FLAGS name must be in a bucket (gs://...), or in the image.

  --name=NAME             of the JobSet; small letters, digits and hyphens
  --image=IMAGE           such as launch/Dockerfile makes
  --tpu=TYPE              as GKE names it, such as tpu-v5-lite-podslice or tpu-v6e-slice
  --topology=SHAPE        of a slice, such as 8x8 or 4x4x4
  --chips-per-host=N      chips of a node of this type, 4 by default
  --slices=N              slices, 1 by default; give training --config.mesh.slice=N
  --service-account=NAME  of Kubernetes, which workload identity lets into the bucket
  --max-restarts=N        of all slices, after any failure but bad input, 50 by default; each goes on
                          where the one before ended
  --grace=SECONDS         from SIGTERM to SIGKILL, 300 by default, in which a step and a save must fit;
                          training is told (--config.train.grace_seconds)
  --spot                  on Spot nodes
  --python=FILE           the Python of the image, python3 by default
  --env=NAME=VALUE        a variable there, any number of times
  --dry-run               print the manifest and do nothing
  any other               goes to kubectl create: --namespace=NAME, --context=NAME, ...
USAGE
}

name='' image='' tpu='' topology='' chips=4 slices=1 account='' restarts=50 grace=300 spot='' options=()
option() {
  case $1 in
    --name=?*) name=${1#*=} ;;
    --image=?*) image=${1#*=} ;;
    --tpu=?*) tpu=${1#*=} ;;
    --topology=?*) topology=${1#*=} ;;
    --chips-per-host=*) whole_number "$1" && chips=${1#*=} ;;
    --slices=*) whole_number "$1" && slices=${1#*=} ;;
    --service-account=?*) account=${1#*=} ;;
    --max-restarts=*) whole_number "$1" && restarts=${1#*=} ;;
    --grace=*) whole_number "$1" && grace=${1#*=} ;;
    --spot) spot=yes ;;
    *) options+=("$1") ;;
  esac
}

# text WORD: prints it as YAML, in quotes; Kubernetes reads $$ as $, and \$(NAME) as a variable.
text() {
  local word=${1//\\/\\\\}
  word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
  printf '"%s"' "${word//\$/\$\$}"
}

# manifest: prints the JobSet. JobSet makes the headless service, by which hosts have names; GKE gives
# them TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and, of several slices, MEGASCALE_..., which JAX reads.
manifest() {
  local word
  cat << YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    # the pods of a slice are on one node pool, and no others are
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - {name: badInput, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              # bad input, which a restart does not mend
              - {action: FailJob, onExitCodes: {containerName: sedd, operator: In, values: [2]}}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace
YAML
  [[ -z $account ]] || printf '              serviceAccountName: %s\n' "$account"
  cat << YAML
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $tpu
                cloud.google.com/gke-tpu-topology: $topology
YAML
  [[ -z $spot ]] || printf '                cloud.google.com/gke-spot: "true"\n'
  cat << YAML
              containers:
                - name: sedd
                  image: $(text "$image")
                  command:
YAML
  for word in "${job[@]}"; do
    printf '                    - %s\n' "$(text "$word")"
  done
  echo '                  env:'
  for word in "${environment[@]}"; do # of two of one name the last counts
    printf '                    - {name: %s, value: %s}\n' "${word%%=*}" "$(text "${word#*=}")"
  done
  cat << YAML
                  # as in JobSet's example of slices: the devices are root's, and libtpu locks memory
                  securityContext: {runAsUser: 0, privileged: true}
                  ports: [{containerPort: 8471}, {containerPort: 8482}]
                  resources: {limits: {google.com/tpu: $chips}}
YAML
}

read_job "$@"
for given in name image tpu topology; do
  [[ -n ${!given} ]] || refuse "--$given is needed; -h says more."
done
# names of pods add -slice-N-N, and may have 63 characters
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  refuse "--name=$name must be small letters, digits and hyphens, at most 40."
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  refuse "--topology=$topology must be like 8x8 or 4x4x4."
((${topology//x/*} % chips == 0)) ||
  refuse "--topology=$topology must be whole hosts of --chips-per-host=$chips."
hosts=$((${topology//x/*} / chips))
[[ $1 != train ]] || given --config.train.grace_seconds "${job[@]}" ||
  job+=("--config.train.grace_seconds=$grace")
if [[ -n $dry_run ]]; then
  manifest
else
  need kubectl
  manifest | kubectl create "${options[@]}" --filename=-
fi
