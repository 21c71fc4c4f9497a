# shellcheck shell=bash
# Header packages of a kernel, unpacked and adapted for building modules at their place. Sourced by attackers.sh; needs apt.sh.

# Downloads and unpacks the headers of a release, with the programs and the compiler's settings they ask for.
unpack_headers() {
    local release=$1 tree=$2 packages=$3 parts
    apt_options=("${apt_base[@]}")
    if ! parts=$(header_parts "$release"); then
        # Not in the machine's lists: those of the suite.
        own_lists >>"$packages/log" 2>&1 && parts=$(header_parts "$release") || return 1
    fi
    # shellcheck disable=SC2086 # one word a package
    (cd "$packages" && apt-get "${apt_options[@]}" download "linux-headers-$release" $parts) >>"$packages/log" 2>&1 || return 1
    local package
    for package in "$packages"/*.deb; do
        dpkg-deb -x "$package" "$tree"
    done
    live_in "$tree"
    run_with_own_libraries "$tree"
}

# The packages that the headers of a release need besides themselves. Programs of another suite need that suite's libraries.
header_parts() {
    local parts
    parts=$(apt-cache "${apt_options[@]}" depends "linux-headers-$1" 2>/dev/null |
        sed -nE 's/^[ |]*(Pre)?Depends: (linux-(headers|kbuild|compiler)-[^ ]*)$/\2/p')
    [ -n "$parts" ] || return 1
    echo "$parts"
    [ -z "$suite" ] || apt-cache "${apt_options[@]}" depends "$(grep -m 1 kbuild <<<"$parts")" |
        sed -nE 's/^[ |]*(Pre)?Depends: ((libc6|libelf1|zlib1g|libzstd1)(t64)?)$/\2/p'
    [ -z "$suite" ] || echo libzstd1
}

# The packages expect to be below /usr.
live_in() {
    local tree=$1 link target
    find "$tree/usr/src" "$tree/usr/lib" -type f \( -name Makefile -o -name '.kernelvariables' \) -size -2k -print0 |
        xargs -0 sed -i "s|/usr/src/|$tree/usr/src/|g; s|/usr/lib/|$tree/usr/lib/|g"
    find "$tree" -type l | while read -r link; do
        target=$(readlink "$link")
        case $target in /usr/*) ln -sfn "$tree$target" "$link" ;; esac
    done
}

# The kernel's own programs (modpost, objtool …) that are too new for this machine start with the libraries that came along.
run_with_own_libraries() {
    local tree=$1 libraries=$1/usr/lib/x86_64-linux-gnu loader program
    for loader in "$tree"/usr/lib64/ld-linux-x86-64.so.2 "$tree"/lib64/ld-linux-x86-64.so.2 "$libraries"/ld-linux-x86-64.so.2; do
        [ -f "$loader" ] && break
    done
    [ -f "$loader" ] || return 0
    find "$tree"/usr/lib/linux-kbuild-* -type f -perm -u+x | while read -r program; do
        [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
        mv "$program" "$program.elf"
        # shellcheck disable=SC2016 # for the script that is written
        printf '#!/bin/sh\nexec "%s" --argv0 "$0" --library-path "%s" "$0.elf" "$@"\n' "$loader" "$libraries" >"$program"
        chmod +x "$program"
    done
}
