#!/usr/bin/env bash
# usage: setup/kernels.sh [few|all]
# Gets other kernels for the test guest, side by side in the cache's kernels/<suite>-<flavour>/: with `few` those that
# `make test` reads, with `all` those of `make test-kernels`. A kernel that cannot be fetched is no failure: its folder
# holds the reason, and the tests say it.
set -euo pipefail

setup=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=setup/common.sh
source "$setup/common.sh"
few="bullseye-cloud bookworm-cloud sid-cloud"
all="$few bullseye-plain bookworm-plain trixie-cloud trixie-plain sid-plain"

case ${1:-few} in
few) kernels=$few ;;
all) kernels=$all ;;
*)
    echo "usage: setup/kernels.sh [few|all]" >&2
    exit 2
    ;;
esac

for kernel in $kernels; do
    suite=${kernel%-*}
    case ${kernel#*-} in
    cloud) package=linux-image-cloud-amd64 ;;
    *) package=linux-image-amd64 ;;
    esac
    folder=$cache_root/kernels/$kernel
    mkdir -p "$folder"
    log=$(mktemp)
    if RETROVISOR_GUEST_DIR=kernels/$kernel RETROVISOR_GUEST_SUITE=$suite RETROVISOR_GUEST_KERNEL_PACKAGE=$package \
        "$setup/guest.sh" 2> >(tee "$log" >&2); then
        rm -f "$folder/unavailable"
    else
        say "WITHOUT the kernel $kernel"
        tail -n 3 "$log" >"$folder/unavailable"
    fi
    rm -f "$log"
done
