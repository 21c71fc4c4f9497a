#!/usr/bin/env bash
# usage: setup/step.sh NAME COMMAND [ARGUMENT...]
# Runs one step of the Makefile and says its name, how it ended and how long it took.
set -euo pipefail
# shellcheck source=setup/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"
name=$1
shift
printf '== %s\n' "$name" >&2
began=$(date +%s%N)
status=0
"$@" || status=$?
tenths=$((($(date +%s%N) - began) / 100000000))
if [ "$status" -eq 0 ]; then word="done"; else word="FAILED with status $status"; fi
printf '== %s: %s, %d.%d s\n' "$name" "$word" $((tenths / 10)) $((tenths % 10)) >&2
exit "$status"
