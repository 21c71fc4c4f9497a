# shellcheck shell=bash
# Debian packages, downloaded into the cache and not installed; no root needed. Sourced; needs common.sh
# and a variable `suite`: a Debian suite, or nothing for the sources of this machine.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# As root, apt would hand the download to a user who cannot write into the cache.
apt_base=(-q -o APT::Sandbox::User=root -o Acquire::Retries=3)
apt_options=("${apt_base[@]}")

# Package lists in the cache: of the sources of this machine, whose own lists may be missing or old, or of another suite.
# Fetched again when they are older than an hour. The system's apt is left as it is.
own_lists() {
    local lists=$cache_root/apt/${suite:-own} mirror
    mkdir -p "$lists/lists/partial" "$lists/archives/partial"
    apt_options=("${apt_base[@]}" -o "Dir::State::lists=$lists/lists" -o "Dir::Cache=$lists" -o Acquire::Languages=none
        -o Acquire::GzipIndexes=true -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::IndexTargets::deb::CNF::DefaultEnabled=false)
    if [ -n "$suite" ]; then
        need_keyring || return 1
        apt_options+=(-o "Dir::Etc::SourceList=$lists/sources.list" -o Dir::Etc::SourceParts=/dev/null
            -o Dir::Etc::PreferencesParts=/dev/null -o Dir::Etc::Preferences=/dev/null -o "Dir::State::status=$(empty_status)")
    fi
    (
        flock 9
        if [ -n "$(find "$lists/updated" -mmin -60 2>/dev/null)" ]; then exit; fi
        if [ -z "$suite" ]; then
            # A failing source must not affect the others.
            apt-get "${apt_options[@]}" update || true
            touch "$lists/updated"
            exit
        fi
        # What is no longer kept on the mirrors is in the archive, where lists are not renewed.
        for mirror in ${RETROVISOR_DEBIAN_MIRROR:-http://deb.debian.org/debian http://archive.debian.org/debian}; do
            echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main" >"$lists/sources.list"
            if apt-get "${apt_options[@]}" -o Acquire::Check-Valid-Until=false -o APT::Update::Error-Mode=any update; then
                touch "$lists/updated"
                exit
            fi
        done
        exit 1
    ) 9>"$lists/lock"
}

# Debian's keys: installed, or unpacked from their package, which relatives of Debian have too.
need_keyring() {
    local folder=$cache_root/apt/keyring suite='' apt_options=("${apt_base[@]}")
    [ ! -f "$keyring" ] || return 0
    keyring=$folder/tree/usr/share/keyrings/debian-archive-keyring.gpg
    [ ! -f "$keyring" ] || return 0
    mkdir -p "$folder"
    if { download_keyring || { own_lists && download_keyring; }; } && dpkg-deb -x "$folder"/debian-archive-keyring_*.deb "$folder/tree"; then return; fi
    echo "E: Debian's keys are missing: install the package debian-archive-keyring"
    return 1
}

download_keyring() { (cd "$folder" && apt-get "${apt_options[@]}" download debian-archive-keyring); }

# A list of installed packages with nothing in it.
empty_status() {
    mkdir -p "$cache_root/apt/empty"
    [ -f "$cache_root/apt/empty/status" ] || : >"$cache_root/apt/empty/status"
    echo "$cache_root/apt/empty/status"
}

# Downloads packages with all that they depend on, as for a machine where nothing is installed, and sets `files` to their paths.
# Messages go to descriptor 3, the rest is a log.
# What an earlier run has fetched is used; hashes are checked.
fetch_with_dependencies() {
    local what=$1
    shift
    if [ -z "$suite" ]; then
        apt_options=("${apt_base[@]}")
        fetch_from_lists "$what" "$@" && return
    fi
    own_lists && fetch_from_lists "$what" "$@"
}

fetch_from_lists() {
    local what=$1 wanted archives=$cache_root/apt/archives
    shift
    mkdir -p "$archives/partial" "$cache_root/apt/empty/archives/partial"
    local options=("${apt_options[@]}" -o "Dir::State::status=$(empty_status)" -o Acquire::ForceHash=SHA256 -o Debug::NoLocking=true
        -o APT::Architecture=amd64 -o APT::Architectures=amd64)
    wanted=$(apt-get "${options[@]}" -o "Dir::Cache::archives=$cache_root/apt/empty/archives" install --no-install-recommends --print-uris -y "$@" |
        files_of_uris) || return 1
    [ -n "$wanted" ] || return 1
    say "downloading $what: $(awk '{ n++; bytes += $2 } END { printf "%d Debian packages, %.0f MB", n, bytes / 1e6 }' <<<"$wanted")" 2>&3
    for _ in 1 2; do
        apt-get "${options[@]}" -o "Dir::Cache::archives=$archives" install --no-install-recommends --download-only -y "$@" || return 1
        if all_whole "$archives" <<<"$wanted"; then
            # shellcheck disable=SC2034 # for the caller
            mapfile -t files < <(sed "s|^|$archives/|; s| .*||" <<<"$wanted")
            return
        fi
    done
    return 1
}

# What `apt-get --print-uris` says on standard input, as lines of file name, bytes and hash.
files_of_uris() { sed -nE "s/^'[^']*' (\S+) ([0-9]+) SHA256:(\S+).*/\1 \2 \3/p"; }

# Whether the files of such lines are in a folder, unharmed; those that are broken are removed.
all_whole() {
    local name bytes sum status=0
    while read -r name bytes sum; do
        if [ "$(stat -c %s "$1/$name" 2>/dev/null)" = "$bytes" ] && sha256sum --status -c <<<"$sum  $1/$name"; then continue; fi
        echo "E: $name was not downloaded whole" >&2
        rm -f "$1/$name"
        status=1
    done
    return "$status"
}
