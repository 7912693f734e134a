#!/usr/bin/env bash
# Runs `pretrain` on Cloud TPU VMs, one host or many, one slice or several.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

usage() {
  cat <<'TEXT'
usage: tpu_vm.sh COMMAND --name=NAME --zone=ZONE [flags] [-- PRETRAIN FLAGS]

commands, in the order of use:
  create   asks for a TPU through a queued resource and waits until it is there
  setup    copies the commit that is checked out here to every worker and installs it
  launch   starts `pretrain` in tmux on every worker of every slice; goes on from the last checkpoint
  resume   after a preemption: asks for the TPU again where it is lost, sets it up and launches
  logs     shows the log of one worker
  status   shows the state of the TPU
  stop     interrupts what was launched
  delete   gives the TPU back

flags:
  --name=NAME            name of the TPU and of its queued resource
  --zone=ZONE            e.g. us-east5-b
  --project=PROJECT      default: that of gcloud
  --accelerator=TYPE     create: e.g. v5litepod-16, v6e-8, v5p-128, v4-32
  --runtime=VERSION      create: TPU software version; default: the one for the accelerator
  --slices=NUMBER        slices of the TPU, joined by the data-centre network: default 1
  --spot                 create: may be preempted, costs less
  --direct               create, status, delete: without a queued resource
  --python=VERSION       setup: default 3.12; the TPU's own Python is too old
  --extras=NAMES         setup: default tpu,gcs; add data to curate and cache there too
  --command=NAME         launch: pretrain command, default train. train, evaluate and generate start on every
                         worker; curate, cache and report on one; run (all stages) is for a TPU of one worker
  --gin_file=FILE        launch: run file in this checkout or gs://...
  --workdir=gs://...     launch: folder of the run, the same for all workers
  --session=NAME         launch, logs, stop: name of the tmux session and of the log, default pretrain
  --worker=NUMBER        logs: default 0
  --lines=NUMBER         logs: default 100
  --follow               logs: goes on as the log grows
  --yes                  delete: asks no question
  --dry_run              prints every command instead of running it

example:
  tpu_vm.sh create --name=demo --zone=us-east5-b --accelerator=v6e-8 --spot
  tpu_vm.sh setup  --name=demo --zone=us-east5-b
  tpu_vm.sh launch --name=demo --zone=us-east5-b --gin_file=gin_configs/runs/quickstart.gin \
    --workdir=gs://my-bucket/runs/demo -- --gin.TRAIN_STEPS=2000
  tpu_vm.sh logs   --name=demo --zone=us-east5-b --follow
TEXT
}

tpu() { # a gcloud compute tpus command on this TPU's place
  run gcloud compute tpus "$@" "${place[@]}"
}

nodes() { # names of the slices, one a line
  local number
  ((flags[slices] > 1)) || { echo "${flags[name]}"; return; }
  for ((number = 0; number < flags[slices]; number++)); do echo "${flags[name]}-$number"; done
}

on_workers() { # which workers, what to run there; of all slices where it is all workers
  local node
  for node in $(nodes); do
    tpu tpu-vm ssh "$node" --worker="$1" --command="$2"
    [[ $1 == all ]] || break
  done
}

default_runtime() {
  case ${flags[accelerator]} in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) refuse "no TPU software version is known for --accelerator=${flags[accelerator]}; name it with --runtime=" ;;
  esac
}

create() {
  need accelerator
  local runtime=${flags[runtime]} spot=()
  [[ -n $runtime ]] || runtime=$(default_runtime)
  [[ ${flags[spot]} == true ]] && spot=(--spot)
  if [[ ${flags[direct]} == true ]]; then
    tpu tpu-vm create "${flags[name]}" --accelerator-type="${flags[accelerator]}" --version="$runtime" "${spot[@]}"
    return
  fi
  local node=(--node-id="${flags[name]}")
  ((flags[slices] == 1)) || node=(--node-count="${flags[slices]}" --node-prefix="${flags[name]}")
  tpu queued-resources create "${flags[name]}" "${node[@]}" \
    --accelerator-type="${flags[accelerator]}" --runtime-version="$runtime" "${spot[@]}" --async
  wait_until_active
}

state() { # of the queued resource
  tpu queued-resources describe "${flags[name]}" --format='value(state.state)'
}

wait_until_active() {
  local last='' new
  while true; do
    new=$(state)
    [[ ${flags[dry_run]} == true ]] && { echo "$new"; return; }
    [[ $new == "$last" ]] || echo "tpu_vm.sh: ${flags[name]} is ${new:-unknown}" >&2
    last=$new
    case $last in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "tpu_vm.sh: the request has failed; \`tpu_vm.sh status\` tells why, \`tpu_vm.sh delete\` clears it" >&2
        return 1
        ;;
    esac
    sleep "${TPU_VM_POLL_SECONDS:-30}"
  done
}

setup() {
  local folder bundle node
  folder=$(dirname "$here")
  git -C "$folder" rev-parse --quiet --verify HEAD >/dev/null || refuse "$folder is not a git checkout with a commit"
  if [[ -n $(git -C "$folder" status --porcelain) ]]; then
    echo "tpu_vm.sh: uncommitted changes stay here; the workers get commit $(git -C "$folder" rev-parse --short HEAD)" >&2
  fi
  bundle=$(mktemp -d)/pretrain.bundle
  # shellcheck disable=SC2064  # the folder's name is known now
  trap "rm -rf '$(dirname "$bundle")'" EXIT
  run git -C "$folder" bundle create --quiet "$bundle" HEAD
  for node in $(nodes); do
    tpu tpu-vm scp "$bundle" "$node:pretrain.bundle" --worker=all
  done
  on_workers all "$(setup_script)"
}

setup_script() { # what every worker does; libtpu comes with jax[tpu], in the version that its compiler was made for
  local package
  package=$(quoted "./pretrain[${flags[extras]}]") # editable: the run then records the commit
  cat <<TEXT
set -eu
cd ~
export PATH="\$HOME/.local/bin:\$PATH"
command -v tmux >/dev/null || { sudo apt-get -qq update && sudo apt-get -qq install -y tmux; }
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
rm -rf pretrain
git clone --quiet pretrain.bundle pretrain
uv venv --quiet --clear --python ${flags[python]} pretrain-venv
uv pip install --quiet --python pretrain-venv/bin/python --editable $package
pretrain-venv/bin/pretrain --help >/dev/null
echo "\$(hostname): installed \$(git -C pretrain rev-parse --short HEAD)"
TEXT
}

launch() {
  need workdir gin_file
  [[ ${flags[workdir]} == gs://* ]] || refuse "--workdir=${flags[workdir]}: the workers share no disk; give a gs:// folder"
  local log=${flags[session]}.log workers=all inner
  [[ ! ${flags[command]} =~ ^(curate|cache|report)$ ]] || workers=0
  inner="{ ../pretrain-venv/bin/pretrain $(quoted "${flags[command]}" --gin_file="${flags[gin_file]}" \
    --workdir="${flags[workdir]}" "${passed[@]}"); echo \"exit code \$?\"; } 2>&1 | tee -a ../$log"
  on_workers "$workers" "set -eu
if tmux has-session -t =${flags[session]} 2>/dev/null; then
  echo \"\$(hostname): a run is at work in tmux session ${flags[session]}; stop it first\" >&2
  exit 1
fi
cd ~/pretrain
tmux new-session -d -s ${flags[session]} $(quoted "$inner")"
}

resume() {
  need accelerator workdir gin_file
  if [[ ${flags[dry_run]} == true || $(state) != ACTIVE ]]; then
    tpu queued-resources delete "${flags[name]}" --force --quiet
    create
    setup
  fi
  launch
}

logs() {
  local follow=''
  [[ ${flags[follow]} == true ]] && follow=' -F'
  on_workers "${flags[worker]}" "tail -n ${flags[lines]}$follow ~/${flags[session]}.log"
}

status() {
  [[ ${flags[direct]} == true ]] || tpu queued-resources describe "${flags[name]}"
  local node
  for node in $(nodes); do
    tpu tpu-vm describe "$node" --format='yaml(name,state,health,acceleratorType,runtimeVersion,networkEndpoints)'
  done
}

stop() {
  on_workers all "if tmux has-session -t =${flags[session]} 2>/dev/null; then tmux send-keys -t =${flags[session]}: C-c; fi"
}

delete() {
  local yes=()
  [[ ${flags[yes]} == true ]] && yes=(--quiet)
  if [[ ${flags[direct]} == true ]]; then
    tpu tpu-vm delete "${flags[name]}" "${yes[@]}"
  else
    tpu queued-resources delete "${flags[name]}" --force "${yes[@]}"
  fi
}

check_flags() {
  checked session '[A-Za-z0-9_-]+' "letters, digits, - and _"
  checked python '[0-9.]+' "a version such as 3.12"
  checked worker '[0-9]+|all' "a number or all"
  checked command '[a-z]+' "a command of pretrain"
  checked lines '[0-9]+' "a number"
  checked slices '[1-9][0-9]*' "a number"
  [[ ${flags[direct]} != true || ${flags[slices]} == 1 ]] || refuse "several slices need a queued resource, not --direct"
}

main() {
  command=${1:-}
  case $command in
    --help | -h | help) usage; exit 0 ;;
    create | setup | launch | resume | logs | status | stop | delete) shift ;;
    '') usage >&2; exit 2 ;;
    *) refuse "no such command: $command; see tpu_vm.sh --help" ;;
  esac
  [[ " $* " != *" --help "* ]] || { usage; exit 0; }
  parse "$@"
  check_flags
  need name zone
  place=(--zone="${flags[zone]}")
  [[ -z ${flags[project]} ]] || place+=(--project="${flags[project]}")
  "$command"
}

switches="spot direct follow yes dry_run"
declare -A flags=(
  [name]='' [zone]='' [project]='' [accelerator]='' [runtime]='' [slices]=1 [spot]='' [direct]='' [python]=3.12 [extras]='tpu,gcs'
  [command]=train [gin_file]='' [workdir]='' [session]=pretrain [worker]=0 [lines]=100 [follow]='' [yes]='' [dry_run]=''
)
passed=()
place=()
main "$@"
