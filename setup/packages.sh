# shellcheck shell=bash
# Debian packages for the guest, downloaded into the cache and not installed; no root needed. Sourced by guest.sh.

# Sees to the packages named and to the parts of a kernel they ask for, in $cache/packages.
need_packages() {
    local list=$cache/packages/list
    if [ -f "$list" ] && [ "$(head -n 1 "$list")" = "$*" ] && all_downloaded "$list"; then return; fi

    if ! { have apt-get && have dpkg-deb; }; then
        die "the guest is made from the Debian packages $*, and this machine has no apt-get and dpkg-deb:" \
            "run setup/guest.sh on a Debian machine and copy $cache here"
    fi
    say "downloading the Debian packages $* into $cache/packages (about 28 MB)"
    mkdir "$new/packages"
    if ! download "$@"; then
        # The machine's package lists are missing or old: lists of our own need no root.
        mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
        apt_options+=(-o "Dir::State::lists=$cache/apt/lists" -o "Dir::Cache=$cache/apt/cache")
        if ! { apt-get "${apt_options[@]}" update && download "$@"; } >>"$new/apt.log" 2>&1; then
            grep -E '^(E|W|Err):?' "$new/apt.log" | tail -n 5 >&2 || true
            die "could not download the Debian packages $* (is there a network, and a Debian mirror in /etc/apt?)" \
                "Without a network: copy $cache from a machine where setup/guest.sh has run."
        fi
    fi
    rm -f "$cache"/packages/*
    mv "$new"/packages/*.deb "$cache/packages/"
    { echo "$*" && (cd "$cache/packages" && ls -- *.deb); } >"$new/list"
    mv "$new/list" "$list"
    rm -rf "$cache/apt"
}

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
