#!/usr/bin/env bash
# Runs `pretrain` on TPU slices of a GKE cluster, by a JobSet of one's own or through XPK.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

usage() {
  cat <<'TEXT'
usage: gke.sh COMMAND --name=NAME [flags] [-- PRETRAIN FLAGS]

commands:
  manifest  prints the JobSet (tpu_scripts/gke_jobset.yaml, filled in)
  launch    applies it; a slice that is lost comes back and goes on from the last checkpoint
  resume    removes what is left of a job and launches it again
  xpk       hands the same run to XPK, which brings its own manifest
  logs      shows the log of one host
  status    shows the job and its pods
  stop      deletes the job, after time for a last checkpoint

flags:
  --name=NAME            of the job
  --namespace=NAME       default: that of kubectl
  --image=IMAGE          manifest, launch, resume, xpk: container with pretrain[tpu,gcs] installed
  --gin_file=FILE        manifest, launch, resume, xpk: run file in the container or gs://...
  --workdir=gs://...     manifest, launch, resume, xpk: folder of the run
  --accelerator=TYPE     manifest, launch, resume: e.g. tpu-v5p-slice, tpu-v6e-slice, tpu-v5-lite-podslice
  --topology=SHAPE       manifest, launch, resume: chips of a slice, e.g. 4x4x8
  --chips_per_host=N     manifest, launch, resume: default 4
  --slices=NUMBER        default 1
  --restarts=NUMBER      manifest, launch, resume: of the whole job, default 10
  --service_account=NAME manifest, launch, resume: may write to the workdir; default: default
  --tpu_type=TYPE        xpk: e.g. v5p-256
  --cluster=NAME         xpk: the cluster
  --worker=NUMBER        logs: host of the first slice, default 0
  --lines=NUMBER         logs: default 100
  --follow               logs: goes on as the log grows
  --dry_run              prints every command, and what it would read, instead of running it

example:
  gke.sh launch --name=demo --image=us-docker.pkg.dev/me/pretrain:1 --accelerator=tpu-v5p-slice --topology=4x4x4 \
    --slices=2 --gin_file=gin_configs/runs/llama3_8b.gin --workdir=gs://my-bucket/demo -- --gin.MeshConfig.data=2
TEXT
}

kube() { # a kubectl command in the namespace
  run kubectl "${place[@]}" "$@"
}

json() { # a word as a JSON string, which YAML reads too
  local word=${1//\\/\\\\}
  word=${word//$'\n'/\\n}
  printf '"%s"' "${word//\"/\\\"}"
}

name_words() { # sets `words`, the command in the container
  words=(pretrain train --gin_file="${flags[gin_file]}" --workdir="${flags[workdir]}" "${passed[@]}")
}

manifest() {
  need image gin_file workdir accelerator topology
  local text chips=1 side quoted=() word hosts
  for side in ${flags[topology]//x/ }; do chips=$((chips * side)); done
  ((chips % flags[chips_per_host] == 0)) ||
    refuse "--topology=${flags[topology]} has $chips chips, no multiple of --chips_per_host=${flags[chips_per_host]}"
  hosts=$((chips / flags[chips_per_host]))
  name_words
  for word in "${words[@]}"; do quoted+=("$(json "$word")"); done
  text=$(<"$here/gke_jobset.yaml")
  text=${text//'{{hosts}}'/"$hosts"}
  for word in name image accelerator topology chips_per_host slices restarts service_account; do
    text=${text//"{{$word}}"/"${flags[$word]}"}
  done
  text=${text//'{{command}}'/"[$(IFS=,; echo "${quoted[*]}")]"}
  printf '%s\n' "$text"
}

launch() {
  local text
  text=$(manifest)
  if [[ ${flags[dry_run]} == true ]]; then
    printf '%s <<'"'JOBSET'"'\n%s\nJOBSET\n' "$(kube apply -f -)" "$text"
  else
    kube apply -f - <<<"$text"
  fi
}

resume() {
  need image gin_file workdir accelerator topology
  stop
  launch
}

through_xpk() {
  need image gin_file workdir tpu_type cluster
  name_words
  run xpk workload create --cluster="${flags[cluster]}" --workload="${flags[name]}" --docker-image="${flags[image]}" \
    --tpu-type="${flags[tpu_type]}" --num-slices="${flags[slices]}" --max-restarts="${flags[restarts]}" \
    --command="$(quoted "${words[@]}")"
}

logs() {
  local follow=()
  [[ ${flags[follow]} == true ]] && follow=(-f)
  kube logs --tail="${flags[lines]}" "${follow[@]}" \
    --selector="jobset.sigs.k8s.io/jobset-name=${flags[name]},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=${flags[worker]}"
}

status() {
  kube get jobset "${flags[name]}"
  kube get pods --selector="jobset.sigs.k8s.io/jobset-name=${flags[name]}" -o wide
}

stop() {
  kube delete jobset "${flags[name]}" --ignore-not-found --cascade=foreground
}

check_flags() {
  checked name '[a-z]([a-z0-9-]*[a-z0-9])?' "small letters, digits and -, as Kubernetes names are"
  checked slices '[1-9][0-9]*' "a number"
  checked restarts '[0-9]+' "a number"
  checked chips_per_host '[1-9][0-9]*' "a number"
  checked worker '[0-9]+' "a number"
  checked lines '[0-9]+' "a number"
  checked topology '|[0-9]+(x[0-9]+)+' "chips such as 4x4x8"
  checked image '[A-Za-z0-9./:@_-]*' "the name of an image"
  checked accelerator '[a-z0-9-]*' "a type such as tpu-v5p-slice"
  checked service_account '[a-z0-9.-]+' "the name of a service account"
  [[ -z ${flags[workdir]} || ${flags[workdir]} == gs://* ]] ||
    refuse "--workdir=${flags[workdir]}: the hosts share no disk; give a gs:// folder"
}

main() {
  command=${1:-}
  case $command in
    --help | -h | help) usage; exit 0 ;;
    manifest | launch | resume | xpk | logs | status | stop) shift ;;
    '') usage >&2; exit 2 ;;
    *) refuse "no such command: $command; see gke.sh --help" ;;
  esac
  [[ " $* " != *" --help "* ]] || { usage; exit 0; }
  parse "$@"
  need name
  check_flags
  [[ -z ${flags[namespace]} ]] || place=(--namespace="${flags[namespace]}")
  "${command/#xpk/through_xpk}"
}

switches="follow dry_run"
declare -A flags=(
  [name]='' [namespace]='' [image]='' [gin_file]='' [workdir]='' [accelerator]='' [topology]='' [chips_per_host]=4
  [slices]=1 [restarts]=10 [service_account]=default [tpu_type]='' [cluster]='' [worker]=0 [lines]=100 [follow]=''
  [dry_run]=''
)
passed=()
place=()
words=()
main "$@"
