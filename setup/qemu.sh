#!/usr/bin/env bash
# usage: setup/qemu.sh [SUITE]
# Unpacks QEMU of a Debian suite (bookworm: 7.2, trixie: 10.x, sid: the newest) into the cache and prints the path of its
# qemu-system-x86_64; qemu-img is in the same folder. Without SUITE, prints the path of the one that is used otherwise, unpacked if none
# is installed. To use another one:
#     PATH="$(dirname "$(setup/qemu.sh sid)"):$PATH" make test
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=setup/common.sh
source "$root/setup/common.sh"
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"
# shellcheck source=setup/unpack.sh
source "$root/setup/unpack.sh"
# shellcheck source=setup/tools.sh
source "$root/setup/tools.sh"

suite=${1:-}
if [ $# -gt 1 ] || [[ ! $suite =~ ^[a-z]*$ ]]; then
    echo "usage: setup/qemu.sh [SUITE]" >&2
    exit 2
fi
mkdir -p "$cache_root"/{bin,bin-first} || die "cannot make $cache_root; set RETROVISOR_CACHE to a folder that can be written"
lock_file "$cache_root/lock"
if [ -z "$suite" ]; then
    need_qemu
    command -v qemu-system-x86_64
else
    no_packages "QEMU of $suite"
    suite='' need_compiler
    unpack_qemu || die "could not get QEMU of $suite (is there a network, and such a suite?): start again when there is"
    echo "$qemu/programs/qemu-system-x86_64"
fi
