#!/usr/bin/env bash
# usage: setup/libvirt.sh
# Unpacks libvirt 9 and QEMU 7.2 of Debian 12 into the cache and prints the path of their folder. setup/libvirtd.sh runs them from
# there. They are left as they are: they run with their own C library.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=setup/common.sh
source "$root/setup/common.sh"
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"
# shellcheck source=setup/unpack.sh
source "$root/setup/unpack.sh"

# shellcheck disable=SC2034 # read by apt.sh
suite=bookworm
mkdir -p "$cache_root" || die "cannot make $cache_root; set RETROVISOR_CACHE to a folder that can be written"
lock_file "$cache_root/lock"
unpack_programs "$cache_root/libvirt" none "libvirt" libvirt0 libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu \
    qemu-system-x86 qemu-utils >&2 || die "could not get libvirt of Debian 12 (is there a network?): start again when there is"
echo "$cache_root/libvirt"
