#!/usr/bin/env bash
# The project's shell scripts, where shellcheck is installed.
set -euo pipefail
if ! command -v shellcheck >/dev/null; then
    echo "shellcheck is not installed: scripts were NOT checked (Debian package shellcheck)" >&2
    exit 0
fi
# The files that begin with #! are programs; the others are read with them.
mapfile -t programs < <(grep -l '^#!' setup/*.sh)
shellcheck -x "${programs[@]}" .ci/run
shellcheck tests/guests/linux/init tests/guests/linux/housekeeper tests/guests/linux/shell-on-port tests/guests/linux/fetcher
