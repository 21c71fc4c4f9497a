#!/usr/bin/env bash
# Gets what the demo and the tests need: QEMU, a C compiler, and a guest to boot
# (a stock Debian kernel, an initramfs with the workload, a disk). Quick when all is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${RETROVISOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovisor}/${RETROVISOR_GUEST_DIR:-guest}
suite=${RETROVISOR_GUEST_SUITE:-}
kernel_package=${RETROVISOR_GUEST_KERNEL_PACKAGE:-linux-image-cloud-amd64}
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# shellcheck source=setup/host.sh
source "$root/setup/host.sh"
# shellcheck source=setup/packages.sh
source "$root/setup/packages.sh"
# shellcheck source=setup/image.sh
source "$root/setup/image.sh"

case ${1:-} in
'') ;;
-h | --help)
    echo "usage: setup/guest.sh"
    echo "Makes the guest in $cache; RETROVISOR_CACHE chooses another place,"
    echo "RETROVISOR_GUEST_KERNEL_PACKAGE another Debian kernel package than $kernel_package,"
    echo "RETROVISOR_GUEST_SUITE another Debian suite than this machine's, RETROVISOR_GUEST_DIR another folder there."
    exit 0
    ;;
*) die "unknown argument $1; setup/guest.sh takes none" ;;
esac

need_host_tools
mkdir -p "$cache/packages" || die "cannot make $cache; set RETROVISOR_CACHE to a folder that can be written"

# Two runs at once: the second waits, and then finds its work done.
exec {lock}>"$cache/lock"
if ! flock -n "$lock"; then
    say "another set-up is at work on $cache, waiting for it"
    flock "$lock"
fi

if guest_is_current; then
    say "guest is ready in $cache (kernel $(manifest_value kernel_release))"
    exit 0
fi

new=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
need_packages "$kernel_package" busybox-static
make_image
say "guest is ready in $cache (kernel $(manifest_value kernel_release))"
