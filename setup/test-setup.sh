#!/usr/bin/env bash
# usage: setup/test-setup.sh [quick|all|CASE...]
# Tests the set-up. `quick`: its functions, in a second. `all`: `make setup` in bare systems made with mmdebstrap (needs root and a
# network), each of which must then boot the guest:
#   bookworm      Debian 12, as root; also QEMU of trixie and sid; then without a network
#   trixie        Debian 13, as an ordinary user
#   newer-utils   Debian 12 with qemu-utils of bookworm-backports, newer than its archive's QEMU; two set-ups at once
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
debian=${RETROVISOR_DEBIAN_MIRROR:-http://deb.debian.org/debian}

note() { printf 'test-setup: %s\n' "$*" >&2; }
fail() {
    note "FAILED: $*"
    exit 1
}

quick() {
    local work
    work=$(mktemp -d)
    export RETROVISOR_CACHE=$work/cache
    # shellcheck source=setup/common.sh
    source "$root/setup/common.sh"
    # shellcheck source=setup/apt.sh
    source "$root/setup/apt.sh"

    at_least 7.2 7.2 || fail "7.2 is at least 7.2"
    at_least 7.2 10.0.2 || fail "10.0.2 is at least 7.2"
    if at_least 7.2 6.2.0; then fail "6.2.0 is not at least 7.2"; fi

    local path
    path=$(without_cache "/a:$work/cache/bin:$work/cache/bin:/b")
    [ "$path" = /a:/b:/usr/sbin:/sbin ] || fail "without_cache gives $path"
    [ "$(without_cache "$path")" = "$path" ] || fail "without_cache adds something at the second time"
    # shellcheck disable=SC2016 # for the inner shell
    path=$(PATH="/a:$PATH" "$root/setup/run.sh" /bin/sh -c 'echo "$PATH"')
    case $path in "$work/cache/bin-first:/a:"*":$work/cache/bin") ;; *) fail "run.sh gives $path" ;; esac

    local lines
    lines=$(files_of_uris <<'URIS'
Reading package lists...
'http://mirror/pool/q_1%3a7.2_amd64.deb' q_1%3a7.2_amd64.deb 3 SHA256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad
URIS
    )
    printf abc >"$work/q_1%3a7.2_amd64.deb"
    all_whole "$work" <<<"$lines" || fail "a whole file is taken for a broken one"
    printf abd >"$work/q_1%3a7.2_amd64.deb"
    if all_whole "$work" <<<"$lines" 2>/dev/null; then fail "a broken file is taken for a whole one"; fi
    [ ! -e "$work/q_1%3a7.2_amd64.deb" ] || fail "a broken file stays"
    if all_whole "$work" <<<"$lines" 2>/dev/null; then fail "a missing file is taken for a whole one"; fi
    rm -rf "$work"
    note "functions: passed"
}

# A bare system in $work/SYSTEM with the working tree in /src. More arguments go to mmdebstrap.
make_system() {
    local suite=$1 system=$2
    shift 2
    mmdebstrap --quiet --variant=apt --include=make,ca-certificates,passwd "$@" "$suite" "$system" "$debian" >&2
    mkdir -p "$system"/{src,opt/cargo,opt/rust,home/user}
    (cd "$root" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar -c) | tar -x -C "$system/src"
    chroot "$system" useradd --no-create-home --home-dir /home/user user
    chroot "$system" chown -R user /src /home/user
}

# in_system SYSTEM USER COMMAND: Rust is that of this machine, and read only; the mounts end with the command.
in_system() {
    local system=$1 user=$2 home=/home/user
    shift 2
    [ "$user" != root ] || home=/root
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount --propagation private bash -euc '
        system=$1 cargo=$2 rust=$3
        shift 3
        mount --bind "$cargo" "$system/opt/cargo"
        mount -o remount,bind,ro "$system/opt/cargo"
        mount --bind "$rust" "$system/opt/rust"
        mount -o remount,bind,ro "$system/opt/rust"
        mount --rbind /dev "$system/dev"
        mount -t proc proc "$system/proc"
        cp -L /etc/resolv.conf "$system/etc/resolv.conf" 2>/dev/null || true
        exec chroot "$system" "$@"
    ' bash "$system" "$cargo" "$rust" \
        setpriv --reuid="$user" --regid="$user" --init-groups env -i HOME="$home" CARGO_HOME=/opt/cargo CARGO_NET_OFFLINE=true \
        CARGO_TARGET_DIR="$home/target" PATH=/opt/rust/bin:/usr/bin:/bin ${http_proxy:+http_proxy="$http_proxy"} \
        bash -euc 'cd /src; '"$*" </dev/null
}

# The programs run, the compiler compiles, and the QEMU named boots the guest.
# shellcheck disable=SC2016 # for the system
check='
setup/run.sh bash -euc "
    for program in mke2fs xz zstd lz4; do \$program -V >/dev/null 2>&1 || { echo \$program does not run; exit 1; }; done
    qemu-img create -q -f qcow2 ~/disk.qcow2 1M && qemu-img check -q ~/disk.qcow2
    echo \"int main(void) { return 0; }\" >~/a.c && cc -static -o ~/a ~/a.c && ~/a
" || exit 1'
# shellcheck disable=SC2016 # for the system
boot='
qemu=$(setup/qemu.sh SUITE)
$qemu --version | head -n 1
guest=~/.cache/retrovisor/guest
rm -f ~/console
{
    echo "{\"execute\": \"qmp_capabilities\"}"
    for _ in $(seq 240); do
        if grep -q "^tick" ~/console 2>/dev/null; then break; fi
        sleep 1
    done
    echo "{\"execute\": \"quit\"}"
} | timeout 300 $qemu -M q35 -accel tcg -m 256 -nodefaults -display none -no-reboot -kernel $guest/vmlinuz -initrd $guest/initramfs.cpio.gz \
    -append "console=ttyS0 panic=-1 quiet" -serial file:$HOME/console -qmp stdio >~/qmp || exit 1
grep -q QMP ~/qmp && grep -m 1 "^tick" ~/console || { echo "the guest did not boot"; exit 1; }'

case_bookworm() {
    make_system bookworm "$1"
    in_system "$1" root "make setup; $check; ${boot/SUITE/}; ${boot/SUITE/trixie}; ${boot/SUITE/sid}"
    note "once more, without a network"
    http_proxy=http://127.0.0.1:9 in_system "$1" root "make setup; setup/qemu.sh sid"
}

case_trixie() {
    make_system trixie "$1"
    in_system "$1" user "make setup; $check; ${boot/SUITE/}"
}

case_newer-utils() {
    make_system bookworm "$1"
    echo "deb $debian bookworm-backports main" >"$1/etc/apt/sources.list.d/backports.list"
    in_system "$1" root "apt-get -qq update; apt-get -qq install -y --no-install-recommends -t bookworm-backports qemu-utils >/dev/null 2>&1; qemu-img --version | head -n 1"
    rm "$1/etc/apt/sources.list.d/backports.list"
    in_system "$1" root "apt-get -qq update; make setup & make setup; wait \$!; $check; ${boot/SUITE/}"
}

run_case() {
    local name=$1 began=$SECONDS status=0
    [ "$(id -u)" -eq 0 ] || fail "bare systems need root"
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing (Debian package mmdebstrap)"
    declare -F "case_$name" >/dev/null || fail "there is no case $name"
    rust=$(rustc --print sysroot)
    cargo=${CARGO_HOME:-$HOME/.cargo}
    (cd "$root" && cargo fetch --locked --quiet)
    work=$(mktemp -d)
    trap 'rm -rf --one-file-system "$work"' EXIT
    note "$name"
    # Behind `||` or `if` a failure would not end the case.
    set +e
    (
        set -e
        "case_$name" "$work/system"
    )
    status=$?
    set -e
    [ "$status" -eq 0 ] || fail "$name, after $((SECONDS - began)) s"
    note "$name: passed, $((SECONDS - began)) s, $(du -sm "$work/system"/{root,home/user}/.cache/retrovisor 2>/dev/null | awk '{ sum += $1 } END { print sum }') MB in the cache"
}

case ${1:-quick} in
quick) quick ;;
all)
    quick
    for name in bookworm trixie newer-utils; do "${BASH_SOURCE[0]}" "$name"; done
    ;;
-*)
    echo "usage: setup/test-setup.sh [quick|all|bookworm|trixie|newer-utils]" >&2
    exit 2
    ;;
*)
    for name in "$@"; do run_case "$name"; done
    ;;
esac
