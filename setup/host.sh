# shellcheck shell=bash
# Programs that must be on this machine itself. Sourced by guest.sh.

qemu_least=7.2

# Sees to QEMU, the C compiler and the tools of the set-up; installs what is missing when it may.
need_host_tools() {
    local missing=()
    have qemu-system-x86_64 || missing+=(qemu-system-x86)
    have qemu-img || missing+=(qemu-utils)
    have mke2fs || missing+=(e2fsprogs)
    have flock || missing+=(util-linux)
    have cc || missing+=(gcc)
    # Kernels are compressed with one or the other.
    have xz || missing+=(xz-utils)
    have zstd || missing+=(zstd)
    have lz4 || missing+=(lz4)
    # The workload is linked statically, and so needs the archive of the C library and not only its headers.
    if ! { have cc && [ -f "$(cc -print-file-name=libc.a)" ]; }; then missing+=(libc6-dev); fi
    if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi

    have cargo || die "cargo is not there; install Rust from https://rustup.rs and start again"
    local version
    version=$(qemu-system-x86_64 --version | sed -n '1s/.*version \([0-9][0-9.]*\).*/\1/p')
    if [ "$(printf '%s\n' "$qemu_least" "$version" | sort -V | head -n 1)" != "$qemu_least" ]; then
        die "QEMU $version is too old, $qemu_least or later is needed:" \
            "install a newer qemu-system-x86 (Debian 12 has 7.2), or put a newer qemu-system-x86_64 first on PATH"
    fi
}

have() { command -v "$1" >/dev/null; }

# Only ever adds: packages that are there are neither replaced nor removed.
install_packages() {
    local by_hand="apt-get install --no-install-recommends $*"
    have apt-get || die "missing programs, of the Debian packages $*; install them and start again"
    if [ "$(id -u)" -ne 0 ]; then
        die "missing programs, of the Debian packages $*; as root: $by_hand"
    fi
    say "installing $*"
    local log
    log=$(mktemp)
    if ! apt_install "$@" >"$log" 2>&1; then
        { apt-get update && apt_install "$@"; } >"$log" 2>&1 || {
            tail -n 5 "$log" >&2
            rm -f "$log"
            die "could not install $* (is there a network?); when there is: $by_hand"
        }
    fi
    rm -f "$log"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --no-remove --no-upgrade "$@"
}
