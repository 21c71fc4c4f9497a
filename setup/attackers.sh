#!/usr/bin/env bash
# usage: setup/attackers.sh [few|all]
# Builds the attackers (tests/guests/attackers: test fixtures) for the kernels of the test guests, against Debian's header
# packages, which are downloaded and unpacked into the cache and not installed. One archive for each kernel:
# attackers/RELEASE.cpio in the cache, to be put behind a guest's initramfs. With `few` for those that `make test` attacks,
# with `all` for all that are set up. Quick when all is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=setup/common.sh
source "$root/setup/common.sh"
guests=$cache_root
attackers=$guests/attackers
sources=$root/tests/guests/attackers

# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"
# shellcheck source=setup/headers.sh
source "$root/setup/headers.sh"

cd "$guests" || die "no guest is set up: run setup/guest.sh first"
case ${1:-few} in
few) folders=(guest kernels/bullseye-cloud kernels/sid-cloud) ;;
all) folders=(guest kernels/*) ;;
*)
    echo "usage: setup/attackers.sh [few|all]" >&2
    exit 2
    ;;
esac

sources_sum() {
    (cd "$root" && find setup/attackers.sh setup/headers.sh setup/compiler.sh tests/guests/attackers -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -d ' ' -f 1
}

# Builds the modules for a release into an archive; 1 when there are no headers, 2 when the compiler fails.
build() {
    local release=$1 new=$2
    mkdir -p "$new/tree" "$new/packages" "$new/build" "$new/root/lib/attackers"
    unpack_headers "$release" "$new/tree" "$new/packages" || return 1
    cp "$sources"/*.[ch] "$sources/Kbuild" "$new/build/"
    # Types of modules would need pahole and are not asked for; settings of our own build are not for a kernel.
    env -u CFLAGS -u LDFLAGS -u MAKEFLAGS -u MFLAGS nice make -C "$new/tree/usr/src/linux-headers-$release" M="$new/build" \
        CC="$root/setup/compiler.sh" HOSTCC=gcc CONFIG_DEBUG_INFO_BTF_MODULES= modules >"$new/log" 2>&1 || return 2
    cp "$new"/build/*.ko "$new/root/lib/attackers/"
    strip --strip-debug "$new"/root/lib/attackers/*.ko
    find "$new/root" -exec touch -h -d @0 {} +
    (cd "$new/root" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0) >"$new/attackers.cpio" 2>/dev/null
}

busybox=$(command -v busybox || true)
if [ -z "$busybox" ]; then
    mkdir -p "$attackers/bin"
    for package in "$guests"/guest/packages/busybox-static_*.deb; do
        [ -x "$attackers/bin/busybox" ] || dpkg-deb --fsys-tarfile "$package" | tar -xO --wildcards './*bin/busybox' >"$attackers/bin/busybox"
        chmod +x "$attackers/bin/busybox"
    done
    busybox=$attackers/bin/busybox
    [ -x "$busybox" ] || die "no busybox: run setup/guest.sh first"
fi

mkdir -p "$attackers"
lock_file "$attackers/lock"
sum=$(sources_sum)
trap 'rm -rf "$attackers"/new.*' EXIT
for folder in "${folders[@]}"; do
    manifest=$folder/manifest.json
    [ -f "$manifest" ] || continue
    release=$(sed -n 's/^ *"kernel_release": "\([^"]*\)".*/\1/p' "$manifest")
    # The suite that the guest's packages came from; nothing for this machine's own.
    suite=$(sed -nE '1s/^(\S+) (linux-image-\S+) .*/\1/p' "$folder/packages/list")
    if [ -f "$attackers/$release.cpio" ] && [ "$(cat "$attackers/$release.sum" 2>/dev/null)" = "$sum" ]; then
        say "attackers for $release are ready"
        continue
    fi
    new=$(mktemp -d "$attackers/new.XXXXXX")
    status=0
    build "$release" "$new" || status=$?
    case $status in
    0)
        mv "$new/attackers.cpio" "$attackers/$release.cpio"
        echo "$sum" >"$attackers/$release.sum"
        say "attackers for $release are built"
        ;;
    1)
        grep -hE '^(E|W|Err):?' "$new"/packages/log | tail -n 3 >&2 || true
        say "SKIPPED: no header packages for $release to be had; its attackers are not built (a suite moves on: without" \
            "$guests/$folder the set-up fetches its kernel of today)"
        ;;
    *)
        tail -n 20 "$new/log" >&2
        die "the attackers could not be built for $release"
        ;;
    esac
    rm -rf "$new"
done
