# shellcheck shell=bash
# Debian packages for the guest. Sourced by guest.sh; needs apt.sh.

# Sees to the packages named and to the parts of a kernel they ask for, in $cache/packages.
need_packages() {
    local list=$cache/packages/list
    if [ -f "$list" ] && [ "$(head -n 1 "$list")" = "$suite${suite:+ }$*" ] && all_downloaded "$list"; then return; fi

    if ! { have apt-get && have dpkg-deb; }; then
        die "the guest is made from the Debian packages $*, and this machine has no apt-get and dpkg-deb:" \
            "run setup/guest.sh on a Debian machine and copy $cache here"
    fi
    say "downloading the Debian packages $* into $cache/packages"
    mkdir -p "$new/packages" "$cache/download"
    if ! { { [ -z "$suite" ] && download "$@"; } || { own_lists && download "$@"; }; } >>"$new/apt.log" 2>&1; then
        grep -E '^(E|W|Err):?' "$new/apt.log" | tail -n 5 >&2 || true
        die "could not download the Debian packages $* (is there a network, and a Debian mirror in /etc/apt?)" \
            "Without a network: copy $cache from a machine where the set-up has run."
    fi
    rm -f "$cache"/packages/*
    mv "$new"/packages/*.deb "$cache/packages/"
    { echo "$suite${suite:+ }$*" && (cd "$cache/packages" && ls -- *.deb); } >"$new/list"
    mv "$new/list" "$list"
    rm -rf "$cache/download" "$cache/apt"
}

all_downloaded() {
    local name
    while read -r name; do
        [ -s "$cache/packages/$name" ] || return 1
    done < <(tail -n +2 "$1")
}

# Downloads to a folder that stays, so that a run that was interrupted is continued.
download() {
    local names wanted
    names=$(with_kernel_parts "$@") || return 1
    # shellcheck disable=SC2086 # one word a package
    (
        cd "$cache/download" || exit
        wanted=$(apt-get "${apt_options[@]}" -o Acquire::ForceHash=SHA256 download --print-uris $names | files_of_uris) || exit 1
        apt-get "${apt_options[@]}" download $names && all_whole . <<<"$wanted" || exit 1
        cut -d ' ' -f 1 <<<"$wanted" | xargs -d '\n' mv -t "$new/packages"
    )
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
