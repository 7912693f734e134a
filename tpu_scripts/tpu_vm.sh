#!/usr/bin/env bash
# Runs `pretrain` on Cloud TPU VMs, one host or many: create, setup, launch, logs, stop, status, delete.
set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "tpu_vm.sh: bash $BASH_VERSION is too old, 4.4 or newer is needed (macOS: brew install bash)" >&2
  exit 2
fi

usage() {
  cat <<'TEXT'
usage: tpu_vm.sh COMMAND --name=NAME --zone=ZONE [flags] [-- PRETRAIN FLAGS]

commands, in the order of use:
  create   asks for a TPU through a queued resource and waits until it is there
  setup    copies the commit that is checked out here to every worker and installs it
  launch   starts `pretrain` in tmux; after a preemption it goes on from the last checkpoint
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

refuse() { # what is wrong with the request
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

need() { # flag names that the command cannot do without
  local flag
  for flag in "$@"; do
    [[ -n ${flags[$flag]} ]] || refuse "$command needs --$flag=...; see tpu_vm.sh --help"
  done
}

run() { # a command; with --dry_run only printed
  if [[ ${flags[dry_run]} == true ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

quoted() { # words, each quoted for a shell
  printf '%q ' "$@"
}

tpu() { # a gcloud compute tpus command on this TPU's place
  run gcloud compute tpus "$@" "${place[@]}"
}

on_workers() { # which workers, what to run there
  tpu tpu-vm ssh "${flags[name]}" --worker="$1" --command="$2"
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
  tpu queued-resources create "${flags[name]}" --node-id="${flags[name]}" \
    --accelerator-type="${flags[accelerator]}" --runtime-version="$runtime" "${spot[@]}" --async
  wait_until_active
}

wait_until_active() {
  local state='' new
  while true; do
    new=$(tpu queued-resources describe "${flags[name]}" --format='value(state.state)')
    [[ ${flags[dry_run]} == true ]] && { echo "$new"; return; }
    [[ $new == "$state" ]] || echo "tpu_vm.sh: ${flags[name]} is ${new:-unknown}" >&2
    state=$new
    case $state in
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
  local folder bundle
  folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  git -C "$folder" rev-parse --quiet --verify HEAD >/dev/null || refuse "$folder is not a git checkout with a commit"
  if [[ -n $(git -C "$folder" status --porcelain) ]]; then
    echo "tpu_vm.sh: uncommitted changes stay here; the workers get commit $(git -C "$folder" rev-parse --short HEAD)" >&2
  fi
  bundle=$(mktemp -d)/pretrain.bundle
  # shellcheck disable=SC2064  # the folder's name is known now
  trap "rm -rf '$(dirname "$bundle")'" EXIT
  run git -C "$folder" bundle create --quiet "$bundle" HEAD
  tpu tpu-vm scp "$bundle" "${flags[name]}:pretrain.bundle" --worker=all
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

logs() {
  local follow=''
  [[ ${flags[follow]} == true ]] && follow=' -F'
  on_workers "${flags[worker]}" "tail -n ${flags[lines]}$follow ~/${flags[session]}.log"
}

status() {
  [[ ${flags[direct]} == true ]] || tpu queued-resources describe "${flags[name]}"
  tpu tpu-vm describe "${flags[name]}" --format='yaml(name,state,health,acceleratorType,runtimeVersion,networkEndpoints)'
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

parse() { # fills `flags` and `passed`
  local word name
  while (($#)); do
    word=$1
    shift
    [[ $word == -- ]] && { passed=("$@"); break; }
    name=${word#--}
    name=${name%%=*}
    [[ $word == --* && -v flags[$name] ]] || refuse "unknown flag $word; see tpu_vm.sh --help"
    if [[ $word == *=* ]]; then
      [[ ! " $switches " == *" $name "* ]] || refuse "--$name takes no value"
      flags[$name]=${word#*=}
    else
      [[ " $switches " == *" $name "* ]] || refuse "write --$name=..."
      flags[$name]=true
    fi
  done
  [[ ${flags[session]} =~ ^[A-Za-z0-9_-]+$ ]] || refuse "--session must be letters, digits, - and _"
  [[ ${flags[python]} =~ ^[0-9.]+$ ]] || refuse "--python must be a version such as 3.12"
  [[ ${flags[worker]} =~ ^([0-9]+|all)$ ]] || refuse "--worker must be a number or all"
  [[ ${flags[command]} =~ ^[a-z]+$ ]] || refuse "--command must be a command of pretrain"
  [[ ${flags[lines]} =~ ^[0-9]+$ ]] || refuse "--lines must be a number"
}

main() {
  command=${1:-}
  case $command in
    --help | -h | help) usage; exit 0 ;;
    create | setup | launch | logs | status | stop | delete) shift ;;
    '') usage >&2; exit 2 ;;
    *) refuse "no such command: $command; see tpu_vm.sh --help" ;;
  esac
  [[ " $* " != *" --help "* ]] || { usage; exit 0; }
  parse "$@"
  need name zone
  place=(--zone="${flags[zone]}")
  [[ -z ${flags[project]} ]] || place+=(--project="${flags[project]}")
  "$command"
}

switches="spot direct follow yes dry_run"
declare -A flags=(
  [name]='' [zone]='' [project]='' [accelerator]='' [runtime]='' [spot]='' [direct]='' [python]=3.12 [extras]='tpu,gcs'
  [command]=train [gin_file]='' [workdir]='' [session]=pretrain [worker]=0 [lines]=100 [follow]='' [yes]='' [dry_run]=''
)
passed=()
place=()
main "$@"
