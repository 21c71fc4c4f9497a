#!/usr/bin/env bash
# usage: setup/faketime.sh
# Unpacks Debian's libfaketime into the cache and prints the path of its library for programs with threads. The soak uses it to
# step the daemon's clock.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=setup/common.sh
source "$root/setup/common.sh"
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"
# shellcheck source=setup/unpack.sh
source "$root/setup/unpack.sh"

# shellcheck disable=SC2034 # read by apt.sh: this machine's own suite
suite=''
mkdir -p "$cache_root" || die "cannot make $cache_root; set RETROVISOR_CACHE to a folder that can be written"
lock_file "$cache_root/lock"
unpack_programs "$cache_root/faketime" none "libfaketime" libfaketime >&2 || die "could not get libfaketime (is there a network?)"
find "$cache_root/faketime/usr/lib" -name libfaketimeMT.so.1 -print -quit
