# shellcheck shell=bash
# The programs that Retrovisor, its tests and the set-up need: those of this machine where they fit, else unpacked into the
# cache. Nothing is installed. Sourced; needs common.sh, apt.sh and unpack.sh.

qemu_least=7.2

# Sees to all programs; the folders of the cache that are on PATH then have those that this machine lacks.
need_tools() {
    local suite=''
    [ "$(uname -m)" = x86_64 ] || die "this is a machine of the kind $(uname -m); Retrovisor runs on x86-64 only"
    need_rust
    mkdir -p "$cache_root"/{bin,bin-first} || die "cannot make $cache_root; set RETROVISOR_CACHE to a folder that can be written"
    (
        lock_file "$cache_root/lock"
        need_small_tools
        need_compiler
        need_qemu
    )
}

# Rust cannot be unpacked from Debian's packages: they are too old.
need_rust() {
    local least version
    least=$(sed -nE 's/^rust-version = "([0-9.]+)"/\1/p' "$root/Cargo.toml")
    have cargo || die "cargo is missing: install Rust $least or later from https://rustup.rs and start again"
    version=$(cd "$root" && cargo --version | cut -d ' ' -f 2) || die "cargo does not run: install Rust $least or later from https://rustup.rs"
    at_least "$least" "${version%%-*}" || die "Rust $version is too old, $least or later is needed: \`rustup update\`, or install it from https://rustup.rs"
}

# The path of a program outside the cache.
installed() { PATH=$installed_path command -v "$1"; }

# link TARGET NAME: puts a program on PATH: behind what is installed, or before one of this name that does not fit.
link() {
    local place=bin
    if installed "$2" >/dev/null; then place=bin-first; fi
    unlink_all "$2"
    ln -s "$1" "$cache_root/$place/$2"
}

unlink_all() {
    local name
    for name in "$@"; do rm -f "$cache_root/bin/$name" "$cache_root/bin-first/$name"; done
}

no_packages() {
    have apt-get && have dpkg-deb && return
    die "missing: $1, and this machine has no apt-get and dpkg-deb to get it: install it and start again"
}

could_not() {
    die "could not get $1 (is there a network, and a Debian mirror in /etc/apt?): start again when there is," \
        "or install it, as root: apt-get install --no-install-recommends $2"
}

need_small_tools() {
    local name missing=() folder=$cache_root/tools
    for name in mke2fs xz zstd lz4; do
        if installed "$name" >/dev/null; then unlink_all "$name"; else missing+=("$name"); fi
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    no_packages "${missing[*]}"
    unpack_programs "$folder" fit "${missing[*]}" e2fsprogs xz-utils zstd lz4 || could_not "${missing[*]}" "e2fsprogs xz-utils zstd lz4"
    for name in "${missing[@]}"; do
        link "$(find "$folder/usr/bin" "$folder/usr/sbin" -name "$name")" "$name"
        "$name" -V >/dev/null 2>&1 && continue
        rm -f "$folder/complete"
        die "$name in $folder does not run: start again, and it is unpacked again"
    done
}

# The workload of the guest is linked statically, and so needs the archive of the C library and not only its headers.
compiler_fits() { "$1" -print-file-name=libc.a >/dev/null 2>&1 && [ -f "$("$1" -print-file-name=libc.a)" ]; }

need_compiler() {
    local name folder=$cache_root/compiler binutils=(ar as ld nm objcopy objdump ranlib readelf strip)
    if compiler_fits "$(installed cc)" && compiler_fits "$(installed gcc)" && installed ld >/dev/null; then
        unlink_all cc gcc "${binutils[@]}"
        return
    fi
    no_packages "a C compiler and the C library's headers and archive"
    unpack_programs "$folder" none "a C compiler" gcc libc6-dev binutils || could_not "a C compiler" "gcc libc6-dev"
    mkdir -p "$folder/programs"
    for name in gcc "${binutils[@]}"; do
        {
            # shellcheck disable=SC2016 # for the script that is written
            printf '#!/bin/sh\nfolder="%s"\nexport LD_LIBRARY_PATH="$folder/libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\n' "$folder"
            # The compiler takes headers and libraries from its folder, and starts the assembler and the linker of it.
            # shellcheck disable=SC2016
            case $name in
            gcc) printf 'exec "$folder/usr/bin/gcc" --sysroot="$folder" -B"$folder/usr/bin/" "$@"\n' ;;
            *) printf 'exec "$folder/usr/bin/%s" "$@"\n' "$name" ;;
            esac
        } >"$folder/programs/$name"
        chmod +x "$folder/programs/$name"
        link "$folder/programs/$name" "$name"
    done
    link "$folder/programs/gcc" cc
    compiler_fits "$folder/programs/gcc" && return
    rm -f "$folder/complete"
    die "the compiler in $folder does not run: start again, and it is unpacked again"
}

# The version of a program of QEMU; nothing if it does not run.
qemu_version() { "$1" --version 2>/dev/null | sed -n '1s/.*version \([0-9][0-9.]*\).*/\1/p'; }

qemu_fits() {
    local version
    version=$(qemu_version "$1") && [ -n "$version" ] && at_least "$qemu_least" "$version"
}

need_qemu() {
    local name found missing=() before
    for name in qemu-system-x86_64 qemu-img; do
        found=$(installed "$name" || true)
        if [ -n "$found" ] && qemu_fits "$found"; then
            unlink_all "$name"
            continue
        fi
        [ -z "$found" ] || say "$found is QEMU '$(qemu_version "$found" || true)', $qemu_least or later is needed: taking another"
        missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    no_packages "QEMU $qemu_least or later"
    before=$(find "$cache_root"/bin{,-first} -name qemu-system-x86_64)
    unpack_qemu || could_not "QEMU" "qemu-system-x86 qemu-utils"
    for name in "${missing[@]}"; do
        link "$qemu/programs/$name" "$name"
    done
    [ -n "$before" ] || say "QEMU $(qemu_version "$qemu/programs/qemu-system-x86_64") is ready in $qemu"
}

# Unpacks QEMU of `suite` into the cache, or of a Debian suite where that of this machine is too old; `qemu` is then its folder.
unpack_qemu() {
    local name
    qemu=$cache_root/qemu/${suite:-own}
    unpack_programs "$qemu" fit "QEMU${suite:+ of $suite}" qemu-system-x86 qemu-utils || return 1
    if ! qemu_fits "$qemu/usr/bin/qemu-system-x86_64" || ! qemu_fits "$qemu/usr/bin/qemu-img"; then
        if [ -z "$suite" ] && [ -n "$(qemu_version "$qemu/usr/bin/qemu-system-x86_64")" ]; then
            say "this machine's QEMU is older than $qemu_least: taking that of Debian 12"
            suite=bookworm
            unpack_qemu
            return
        fi
        "$qemu/usr/bin/qemu-system-x86_64" --version >&2 || true
        rm -f "$qemu/complete"
        die "the QEMU in $qemu does not run: start again, and it is unpacked again"
    fi
    mkdir -p "$qemu/programs"
    for name in qemu-system-x86_64 qemu-img qemu-io qemu-nbd; do
        ln -sfn "../usr/bin/$name" "$qemu/programs/$name"
    done
    # QEMU finds its firmware beside its own binary, unless it was built not to.
    if [[ $("$qemu/programs/qemu-system-x86_64" -L help) != *"$qemu"* ]]; then
        rm "$qemu/programs/qemu-system-x86_64"
        cc -O2 -static -DQEMU="\"$qemu/usr/bin/qemu-system-x86_64\"" -DSHARE="\"$qemu/usr/share\"" \
            -DMODULES="\"$qemu/usr/lib/x86_64-linux-gnu/qemu\"" -o "$qemu/programs/qemu-system-x86_64" "$root/setup/start-qemu.c" ||
            die "the C compiler cannot build setup/start-qemu.c: install gcc and libc6-dev, or remove $cache_root/compiler, and start again"
    fi
}
