#!/usr/bin/env bash
# Gets what the demo needs: QEMU, a C compiler, and a guest to boot (a stock Debian kernel, an initramfs with the workload,
# a disk). Quick when all is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=setup/common.sh
source "$root/setup/common.sh"
cache=$cache_root/${RETROVISOR_GUEST_DIR:-guest}
suite=${RETROVISOR_GUEST_SUITE:-}
kernel_package=${RETROVISOR_GUEST_KERNEL_PACKAGE:-linux-image-cloud-amd64}

# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"
# shellcheck source=setup/unpack.sh
source "$root/setup/unpack.sh"
# shellcheck source=setup/tools.sh
source "$root/setup/tools.sh"
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

need_tools
mkdir -p "$cache/packages" || die "cannot make $cache; set RETROVISOR_CACHE to a folder that can be written"

# Two runs at once: the second waits, and then finds its work done.
lock_file "$cache/lock"

if guest_is_current; then
    say "guest is ready in $cache (kernel $(manifest_value kernel_release))"
    exit 0
fi

new=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
need_packages "$kernel_package" busybox-static
make_image
say "guest is ready in $cache (kernel $(manifest_value kernel_release))"
