#!/usr/bin/env bash
# usage: setup/attackers.sh [KERNEL-RELEASE]...
# Builds the attackers (tests/guests/attackers: test fixtures) for the kernels of the test guests, against Debian's header
# packages, which are downloaded and unpacked into the cache and not installed. One archive for each kernel:
# $cache/attackers/RELEASE.cpio, to be put behind a guest's initramfs. Quick when all is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${RETROVISOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovisor}/attackers
sources=$root/tests/guests/attackers
apt_options=(-q -o APT::Sandbox::User=root)

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

sources_sum() {
    (cd "$root" && find setup/attackers.sh tests/guests/attackers -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -d ' ' -f 1
}

# The releases of the guests that are set up: those of the manifests beside the images.
releases_of_guests() {
    find "${cache%/attackers}" -maxdepth 4 -name manifest.json -exec sed -n 's/^ *"kernel_release": "\([^"]*\)".*/\1/p' {} + | sort -u
}

# Downloads and unpacks the headers of a release, with the scripts and the compiler's settings they ask for.
unpack_headers() {
    local release=$1 tree=$2 packages=$3 names
    names=$(apt-cache "${apt_options[@]}" depends "linux-headers-$release" 2>/dev/null |
        sed -nE 's/^[ |]*(Pre)?Depends: (linux-(headers|kbuild)-[^ ]*)$/\2/p') || return 1
    [ -n "$names" ] || return 1
    # shellcheck disable=SC2086 # one word a package
    (cd "$packages" && apt-get "${apt_options[@]}" download "linux-headers-$release" $names) >>"$packages/log" 2>&1 || return 1
    local package link target
    for package in "$packages"/*.deb; do
        dpkg-deb -x "$package" "$tree"
    done
    # The packages expect to lie below /usr.
    find "$tree/usr/src" "$tree/usr/lib" -type f \( -name Makefile -o -name '.kernelvariables' \) -size -2k -print0 |
        xargs -0 sed -i "s|/usr/src/|$tree/usr/src/|g; s|/usr/lib/|$tree/usr/lib/|g"
    find "$tree" -type l | while read -r link; do
        target=$(readlink "$link")
        case $target in /usr/*) ln -sfn "$tree$target" "$link" ;; esac
    done
}

build() {
    local release=$1 new=$2 headers=$2/tree/usr/src/linux-headers-$1
    mkdir -p "$new/tree" "$new/packages" "$new/build" "$new/root/lib/attackers"
    unpack_headers "$release" "$new/tree" "$new/packages" || return 1
    cp "$sources"/*.[ch] "$sources/Kbuild" "$new/build/"
    # Without the kernel's own image there is nothing to take types from; stray settings of ours are not for a kernel.
    env -u CFLAGS -u LDFLAGS -u MAKEFLAGS -u MFLAGS nice make -C "$headers" M="$new/build" CC=gcc HOSTCC=gcc modules >"$new/log" 2>&1 || return 2
    cp "$new"/build/*.ko "$new/root/lib/attackers/"
    strip --strip-debug "$new"/root/lib/attackers/*.ko
    find "$new/root" -exec touch -h -d @0 {} +
    (cd "$new/root" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0) >"$new/attackers.cpio" 2>/dev/null
}

busybox=$(command -v busybox || true)
if [ -z "$busybox" ]; then
    mkdir -p "$cache/bin"
    for package in "${cache%/attackers}"/guest/packages/busybox-static_*.deb; do
        [ -x "$cache/bin/busybox" ] || dpkg-deb --fsys-tarfile "$package" | tar -xO --wildcards './*bin/busybox' >"$cache/bin/busybox"
        chmod +x "$cache/bin/busybox"
    done
    busybox=$cache/bin/busybox
    [ -x "$busybox" ] || die "no busybox: run setup/guest.sh first"
fi

mkdir -p "$cache"
exec {lock}>"$cache/lock"
flock "$lock"
sum=$(sources_sum)
if [ $# -eq 0 ]; then
    mapfile -t releases < <(releases_of_guests)
else
    releases=("$@")
fi
[ ${#releases[@]} -gt 0 ] || die "no guest is set up: run setup/guest.sh first"
for release in "${releases[@]}"; do
    if [ -f "$cache/$release.cpio" ] && [ "$(cat "$cache/$release.sum" 2>/dev/null)" = "$sum" ]; then
        say "attackers for $release are ready"
        continue
    fi
    new=$(mktemp -d "$cache/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    status=0
    build "$release" "$new" || status=$?
    case $status in
    0)
        mv "$new/attackers.cpio" "$cache/$release.cpio"
        echo "$sum" >"$cache/$release.sum"
        say "attackers for $release are built"
        ;;
    1) say "SKIPPED: no header packages for $release to be had; its attackers are not built" ;;
    *)
        tail -n 20 "$new/log" >&2
        die "the attackers could not be built for $release"
        ;;
    esac
    rm -rf "$new"
done
