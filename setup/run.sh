#!/usr/bin/env bash
# usage: setup/run.sh PROGRAM [ARGUMENT...]
# Runs a program that finds QEMU and its tools where the set-up put them (common.sh). cargo starts tests with it (.cargo/config.toml).
set -euo pipefail
# shellcheck source=setup/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"
exec "$@"
