# What the scripts of this folder share: flags, refusals, dry runs. Sourced by them, never run.
# They set `flags` (name -> value; what is not in it is no flag), `switches` (flags without a value) and `command`.
# shellcheck shell=bash disable=SC2004,SC2034,SC2154

program=$(basename "$0")

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$program: bash $BASH_VERSION is too old, 4.4 or newer is needed (macOS: brew install bash)" >&2
  exit 2
fi

refuse() { # what is wrong with the request
  echo "$program: $1" >&2
  exit 2
}

need() { # flag names that the command cannot do without
  local flag
  for flag in "$@"; do
    [[ -n ${flags[$flag]} ]] || refuse "$command needs --$flag=...; see $program --help"
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

checked() { # flag, pattern of the whole value, what it must be
  [[ ${flags[$1]} =~ ^($2)$ ]] || refuse "--$1 must be $3"
}

quoted() { # words, each quoted for a shell
  printf '%q ' "$@"
}

parse() { # fills `flags` and `passed`
  local word name
  while (($#)); do
    word=$1
    shift
    [[ $word == -- ]] && { passed=("$@"); break; }
    name=${word#--}
    name=${name%%=*}
    [[ $word == --* && -v flags[$name] ]] || refuse "unknown flag $word; see $program --help"
    if [[ $word == *=* ]]; then
      [[ ! " $switches " == *" $name "* ]] || refuse "--$name takes no value"
      flags[$name]=${word#*=}
    else
      [[ " $switches " == *" $name "* ]] || refuse "write --$name=..."
      flags[$name]=true
    fi
  done
}
