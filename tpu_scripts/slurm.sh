#!/usr/bin/env bash
# Runs `pretrain` on the nodes of a Slurm cluster: launch, resume, logs, status, stop.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

usage() {
  cat <<'TEXT'
usage: slurm.sh COMMAND --name=NAME [flags] [-- PRETRAIN FLAGS]

commands:
  manifest  prints the job (tpu_scripts/slurm_job.sbatch, filled in)
  launch    submits it
  resume    submits it again: a run goes on from its last checkpoint
  logs      shows the log
  status    shows the job
  stop      ends it, after time for a last checkpoint

flags:
  --name=NAME            of the job; jobs of one name run one after another
  --gin_file=FILE        manifest, launch, resume: run file
  --workdir=DIR          manifest, launch, resume, logs: folder of the run, which all nodes see; the log is in it
  --pretrain=FILE        manifest, launch, resume: the program on the nodes, default: pretrain
  --nodes=NUMBER         default 1
  --gpus=NUMBER          of a node, each with a process of its own; default 8; 0: a process a node, on CPUs
  --cpus=NUMBER          of a process, default 8
  --time=HH:MM:SS        of one job, default 24:00:00
  --jobs=NUMBER          submits as many in a row, for runs longer than a job may be; default 1
  --partition=NAME       default: the cluster's
  --account=NAME         default: yours
  --lines=NUMBER         logs: default 100
  --follow               logs: goes on as the log grows
  --dry_run              prints every command, and what it would read, instead of running it

example:
  slurm.sh launch --name=demo --nodes=4 --gpus=8 --jobs=3 --gin_file=gin_configs/runs/gpt2_124m.gin --workdir=/shared/demo
TEXT
}

optional() { # a flag as an #SBATCH line, where it is set
  [[ -z ${flags[$1]} ]] || echo "#SBATCH --$1=${flags[$1]}"
}

manifest() {
  need gin_file workdir
  local text tasks=1 more
  more=$(optional partition; optional account)
  if ((flags[gpus] > 0)); then
    tasks=${flags[gpus]}
    more+=$'\n'"#SBATCH --gpus-per-node=${flags[gpus]}"
  fi
  text=$(<"$here/slurm_job.sbatch")
  text=${text//'{{tasks}}'/"$tasks"}
  text=${text//'{{more}}'/"$more"}
  for more in name nodes cpus time workdir; do
    text=${text//"{{$more}}"/"${flags[$more]}"}
  done
  text=${text//'{{command}}'/"$(quoted "${flags[pretrain]}" train --gin_file="${flags[gin_file]}" \
    --workdir="${flags[workdir]}" --max_restarts=10 "${passed[@]}")"}
  printf '%s\n' "$text"
}

launch() {
  local text number
  text=$(manifest)
  for ((number = 0; number < flags[jobs]; number++)); do
    if [[ ${flags[dry_run]} == true ]]; then
      printf '%s <<'"'JOB'"'\n%s\nJOB\n' "$(run sbatch)" "$text"
    else
      run sbatch <<<"$text"
    fi
  done
}

resume() {
  launch
}

logs() {
  need workdir
  local follow=()
  [[ ${flags[follow]} == true ]] && follow=(-F)
  run tail -n "${flags[lines]}" "${follow[@]}" "${flags[workdir]}/${flags[name]}.log"
}

status() {
  run squeue --me --name="${flags[name]}" --long
}

stop() {
  run scancel --me --name="${flags[name]}" --state=PENDING
  run scancel --me --name="${flags[name]}" --signal=TERM
}

check_flags() {
  local number
  checked name '[A-Za-z0-9_-]+' "letters, digits, - and _"
  for number in nodes cpus jobs; do checked "$number" '[1-9][0-9]*' "a number"; done
  for number in gpus lines; do checked "$number" '[0-9]+' "a number"; done
  checked time '[0-9:-]+' "hours, minutes and seconds, such as 24:00:00"
  checked partition '[A-Za-z0-9_,-]*' "the name of a partition"
  checked account '[A-Za-z0-9_-]*' "the name of an account"
  checked workdir '[A-Za-z0-9_./-]*' "a path of letters, digits, _ . / and -"
}

main() {
  command=${1:-}
  case $command in
    --help | -h | help) usage; exit 0 ;;
    manifest | launch | resume | logs | status | stop) shift ;;
    '') usage >&2; exit 2 ;;
    *) refuse "no such command: $command; see slurm.sh --help" ;;
  esac
  [[ " $* " != *" --help "* ]] || { usage; exit 0; }
  parse "$@"
  need name
  check_flags
  "$command"
}

switches="follow dry_run"
declare -A flags=(
  [name]='' [gin_file]='' [workdir]='' [pretrain]=pretrain [nodes]=1 [gpus]=8 [cpus]=8 [time]=24:00:00 [jobs]=1
  [partition]='' [account]='' [lines]=100 [follow]='' [dry_run]=''
)
passed=()
main "$@"
