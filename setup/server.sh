#!/usr/bin/env bash
# Makes a Debian server guest for long tests: nginx, PostgreSQL and Redis under load, on an ext4 disk with its own kernel.
# Takes about five minutes and 2 GiB of the cache. Needs mmdebstrap, and root or unprivileged user namespaces.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${RETROVISOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovisor}/server
suite=${RETROVISOR_SERVER_SUITE:-bookworm}
disk_size=4G
packages=(systemd-sysv udev linux-image-amd64 initramfs-tools kmod iproute2 iputils-ping procps nginx-light redis-server
    postgresql postgresql-contrib cron rsyslog openssh-server curl apache2-utils redis-tools python3-minimal stress-ng
    sysstat dbus)
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# What the image is made from: another list, script or suite makes another image.
recipe() { sha256sum "$root/setup/server.sh" "$root"/setup/server/* | sha256sum | cut -c1-16 && echo "$suite"; }

mkdir -p "$cache"
exec {lock}>"$cache/lock"
if ! flock -n "$lock"; then
    say "another set-up makes the server guest, waiting for it"
    flock "$lock"
fi
if [ -f "$cache/recipe" ] && [ "$(cat "$cache/recipe")" = "$(recipe)" ]; then
    say "server guest is ready in $cache"
    exit 0
fi
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing; as root: apt-get install --no-install-recommends mmdebstrap"

new=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
say "installing Debian $suite with nginx, PostgreSQL and Redis into $cache (some 350 MB are downloaded)"
include=$(IFS=,; echo "${packages[*]}")
# The hooks run outside the new system ($1 is its root), before it is packed.
mmdebstrap --quiet --variant=minbase --include="$include" \
    --customize-hook="$root/setup/server/customize.sh \"\$1\"" \
    --customize-hook="mkdir $new/boot && cp \"\$1\"/boot/vmlinuz-* $new/boot/vmlinuz && cp \"\$1\"/boot/initrd.img-* $new/boot/initrd.img" \
    "$suite" "$new/root.tar" >"$new/log" 2>&1 || {
    tail -n 20 "$new/log" >&2
    die "mmdebstrap failed"
}
say "writing the disk"
mkdir "$new/root"
tar -C "$new/root" -xpf "$new/root.tar" --numeric-owner --exclude='./dev/*'
truncate -s "$disk_size" "$new/disk.raw"
mke2fs -q -t ext4 -d "$new/root" "$new/disk.raw"
mv "$new/boot/vmlinuz" "$new/boot/initrd.img" "$new/disk.raw" "$cache/"
recipe >"$cache/recipe"
say "server guest is ready in $cache"
