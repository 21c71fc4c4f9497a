#!/usr/bin/env bash
# usage: setup/compiler.sh ARGUMENT...
# The machine's gcc for kernels that were built with a newer one: what it does not know yet is left out or said in its own
# words. None of it changes how modules and kernel fit together.
set -euo pipefail
arguments=()
for argument in "$@"; do
    case $argument in
    -fmin-function-alignment=*) arguments+=("-falign-functions=${argument#*=}") ;;
    -fzero-init-padding-bits=* | -fstrict-flex-arrays=* | -fdiagnostics-show-context=*) ;;
    *) arguments+=("$argument") ;;
    esac
done
exec gcc "${arguments[@]}"
