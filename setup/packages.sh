# shellcheck shell=bash
# Debian packages for the guest, downloaded into the cache and not installed; no root needed. Sourced by guest.sh.

# Sees to the packages named and to the parts of a kernel they ask for, in $cache/packages.
need_packages() {
    local list=$cache/packages/list
    if [ -f "$list" ] && [ "$(head -n 1 "$list")" = "$suite${suite:+ }$*" ] && all_downloaded "$list"; then return; fi

    if ! { have apt-get && have dpkg-deb; }; then
        die "the guest is made from the Debian packages $*, and this machine has no apt-get and dpkg-deb:" \
            "run setup/guest.sh on a Debian machine and copy $cache here"
    fi
    say "downloading the Debian packages $* into $cache/packages"
    mkdir "$new/packages"
    if ! { { [ -z "$suite" ] && download "$@"; } || { own_lists && download "$@"; } >>"$new/apt.log" 2>&1; }; then
        grep -E '^(E|W|Err):?' "$new/apt.log" | tail -n 5 >&2 || true
        die "could not download the Debian packages $* (is there a network, and a Debian mirror in /etc/apt?)" \
            "Without a network: copy $cache from a machine where the set-up has run."
    fi
    rm -f "$cache"/packages/*
    mv "$new"/packages/*.deb "$cache/packages/"
    { echo "$suite${suite:+ }$*" && (cd "$cache/packages" && ls -- *.deb); } >"$new/list"
    mv "$new/list" "$list"
    rm -rf "$cache/apt"
}

# Package lists of our own, which need no root: of the sources of this machine, whose lists may be missing or old,
# or of another Debian suite. The system's apt is left as it is.
own_lists() {
    local apt=$cache/apt mirror
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    apt_options+=(-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Acquire::Languages=none)
    if [ -z "$suite" ]; then
        apt-get "${apt_options[@]}" update
        return
    fi
    if [ ! -f "$keyring" ]; then
        echo "E: $keyring is missing (Debian package debian-archive-keyring)"
        return 1
    fi
    apt_options+=(-o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::status=/dev/null
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    # What is no longer kept on the mirrors is in the archive, where lists are not renewed.
    for mirror in ${RETROVISOR_DEBIAN_MIRROR:-http://deb.debian.org/debian http://archive.debian.org/debian}; do
        echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
        if apt-get "${apt_options[@]}" -o Acquire::Check-Valid-Until=false -o APT::Update::Error-Mode=any update; then
            return
        fi
    done
    return 1
}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# As root, apt would hand the download to a user who cannot write into the cache.
apt_options=(-q -o APT::Sandbox::User=root)

all_downloaded() {
    local name
    while read -r name; do
        [ -s "$cache/packages/$name" ] || return 1
    done < <(tail -n +2 "$1")
}

download() {
    local names
    names=$(with_kernel_parts "$@" 2>>"$new/apt.log") || return 1
    # shellcheck disable=SC2086 # one word a package
    (cd "$new/packages" && apt-get "${apt_options[@]}" download $names) >>"$new/apt.log" 2>&1
}

# The packages and those parts of a kernel that they depend on: a meta package names the image of the day,
# and newer releases keep image and modules apart.
with_kernel_parts() {
    local queue=("$@") seen=" " name part
    while [ ${#queue[@]} -gt 0 ]; do
        name=${queue[0]}
        queue=("${queue[@]:1}")
        case $seen in *" $name "*) continue ;; esac
        seen+="$name "
        apt-cache "${apt_options[@]}" show "$name" >/dev/null || return 1
        while read -r part; do
            queue+=("$part")
        done < <(apt-cache "${apt_options[@]}" depends "$name" 2>/dev/null |
            sed -nE 's/^[ |]*(Pre)?Depends: (linux-(image|binary|modules|base)-[^ ]*)$/\2/p')
    done
    echo "$seen"
}
