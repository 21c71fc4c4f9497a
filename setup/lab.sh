#!/usr/bin/env bash
# Runs a program in the lab: a small Linux under QEMU's translator, which emulates the processor's virtualization, so that
# the program finds a /dev/kvm on which stock Linux boots. For hosts whose own KVM cannot do that. Needs no root.
set -euo pipefail

# shellcheck source=setup/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cache=$cache_root/guest

die() {
    printf 'lab: %s\n' "$@" >&2
    exit 125
}

# What its Linux said first when it broke, and last.
console() {
    grep -m 1 -A 15 -E 'BUG:|Oops|general protection|lockup' "$work/console" || true
    tail -n 20 "$work/console"
}

case ${1:-} in
'' | -h | --help)
    echo "usage: setup/lab.sh PROGRAM [ARGUMENT]…"
    echo "Runs PROGRAM (a binary for this host) in the lab and ends with its status; 125: the lab itself failed."
    echo "LAB_FILES names programs that PROGRAM finds in the root folder, separated by colons."
    echo "In the lab, RETROVISOR_CACHE holds the test guest, /tmp is in memory. LAB_SECONDS (1200) ends it."
    echo "LAB_KERNELS names other kernels to bring along (folders of the cache's kernels/, made by setup/kernels.sh);"
    echo "LAB_MEMORY_MIB (3072) is its memory, LAB_PROCESSORS (1) how many it has; variables that begin with RETROVISOR_LAB_ are passed on."
    exit 2
    ;;
esac
program=$1
shift
[ -x "$program" ] || die "$program cannot be run"
for file in vmlinuz initramfs.cpio.gz disk.raw packages; do
    [ -e "$cache/$file" ] || die "there is no test guest in $cache: make it with \`make setup\`"
done
command -v qemu-system-x86_64 >/dev/null || die "qemu-system-x86_64 is missing: \`make setup\` gets it"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,modules,proc,sys,dev,tmp,cache/guest} "$work/packages"
for package in "$cache"/packages/*.deb; do
    dpkg-deb -x "$package" "$work/packages"
done
cp "$work/packages/bin/busybox" "$root/bin/busybox"
for module in irqbypass kvm kvm-amd ccp; do
    find "$work/packages" -name "$module.ko*" -exec cp -t "$root/modules" {} +
done
[ -e "$root/modules/kvm.ko" ] || die "the guest's kernel package has no module kvm.ko"
cp --sparse=always "$cache/vmlinuz" "$cache/initramfs.cpio.gz" "$cache/disk.raw" "$root/cache/guest/"
"$(dirname "${BASH_SOURCE[0]}")/vmlinux.sh" "$cache/vmlinuz" "$root/cache/guest/vmlinux" ||
    die "the kernel in $cache cannot be unpacked: \`make setup\` gets what that needs"
for kernel in ${LAB_KERNELS:-}; do
    folder=$(dirname "$cache")/kernels/$kernel
    [ -e "$folder/vmlinuz" ] || die "there is no kernel in $folder: setup/kernels.sh gets it"
    mkdir -p "$root/cache/kernels/$kernel"
    cp "$folder/vmlinuz" "$folder/initramfs.cpio.gz" "$root/cache/kernels/$kernel/"
done
cp "$program" "$root/bin/program"
programs=("$program")
IFS=: read -ra files <<<"${LAB_FILES:-}"
for file in "${files[@]}"; do
    # What is only for debuggers makes most of a program's size.
    strip --strip-debug -o "$root/${file##*/}" "$file" 2>/dev/null || cp "$file" "$root/"
    programs+=("$file")
done
while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done < <(for each in "${programs[@]}"; do ldd "$each" || true; done | grep -oE '/[^ ]+' | sort -u)

{
    printf 'set --'
    printf ' %q' "$@"
    printf '\n'
    for name in "${!RETROVISOR_LAB_@}"; do printf 'export %s=%q\n' "$name" "${!name}"; done
} >"$root/arguments"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=75% tmp /tmp
mkdir -p /dev/shm
# Linux measures the time-stamp counter twice, and says so if both agree. On a busy host the first may be wrong by far, and
# then all time goes wrong, KVM's too.
turns=0
until dmesg | grep -q 'Refined TSC'; do
    turns=$((turns + 1))
    [ "$turns" -gt 120 ] && echo "status again" >/dev/ttyS2 && poweroff -f
    usleep 100000
done
for module in irqbypass ccp kvm kvm-amd; do
    [ -f /modules/$module.ko ] && insmod /modules/$module.ko
done
. /arguments
export RETROVISOR_CACHE=/cache RETROVISOR_LAB=1 RUST_BACKTRACE=1 TMPDIR=/tmp
# What is typed there only wakes the processor (see the script).
cat </dev/ttyS1 >/dev/null &
stty -echo </dev/ttyS1
/bin/program "$@" >/dev/ttyS1 2>&1
echo "status $?" >/dev/ttyS2
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/lab.cpio.gz"

# A key is pressed each second: the translator can lose the interrupt of a timer, and a processor that has nothing else to do
# would wait for it for ever.
# One processor: the translator delivers interrupts to guests twice now and then, the more the more its threads disturb each
# other (docs/kvm.md).
# The translator's processors share one time-stamp counter. Linux takes several of another maker than Intel for unsynchronized,
# and KVM on a counter that is not to be trusted moves those of its guests about; now and then one waited for minutes.
for turn in 1 2 3; do
    timeout "${LAB_SECONDS:-1200}" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -m "${LAB_MEMORY_MIB:-3072}" -smp "${LAB_PROCESSORS:-1}" -nodefaults \
        -display none -no-reboot -kernel "$cache/vmlinuz" -initrd "$work/lab.cpio.gz" \
        -append "console=ttyS0 panic=-1 quiet tsc=reliable" -serial "file:$work/console" -serial stdio -serial "file:$work/status" \
        < <(while sleep 1; do echo; done) || die "the lab did not end by itself; its console says:" "$(console)"
    grep -q '^status again' "$work/status" || break
    echo "lab: its clock was measured wrongly in turn $turn" >&2
done
status=$(sed -nE 's/^status ([0-9]+).*/\1/p' "$work/status")
[ -n "$status" ] || die "the lab ended without a status; its console says:" "$(console)"
exit "$status"
