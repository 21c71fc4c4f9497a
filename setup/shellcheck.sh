#!/usr/bin/env bash
# The project's shell scripts, where shellcheck is installed.
set -euo pipefail
if ! command -v shellcheck >/dev/null; then
    echo "shellcheck is not installed: scripts were NOT checked (Debian package shellcheck)" >&2
    exit 0
fi
shellcheck -x setup/guest.sh setup/kernels.sh setup/attackers.sh setup/compiler.sh setup/step.sh setup/test.sh setup/deny.sh setup/shellcheck.sh .ci/run
shellcheck tests/guests/linux/init tests/guests/linux/housekeeper tests/guests/linux/shell-on-port tests/guests/linux/fetcher
