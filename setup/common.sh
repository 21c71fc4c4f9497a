# shellcheck shell=bash
# What the scripts of this folder share: the cache, PATH, messages. Sourced.
#
# The set-up unpacks what this machine lacks into the cache. Its folder `bin` has what is not installed and comes last on PATH;
# `bin-first` has what replaces an installed program that does not fit (a QEMU that is too old), and comes first.

cache_root=${RETROVISOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovisor}
case $cache_root in /*) ;; *) cache_root=$PWD/$cache_root ;; esac

# without_cache PATH: the same without the folders of the cache, and with the system's.
without_cache() {
    local path=:$1: folder
    for folder in "$cache_root/bin-first" "$cache_root/bin" /usr/sbin /sbin; do
        while [[ $path == *:"$folder":* ]]; do path=${path//:"$folder":/:}; done
    done
    path=${path#:}
    echo "${path%:}:/usr/sbin:/sbin"
}

installed_path=$(without_cache "$PATH")
PATH=$cache_root/bin-first:$installed_path:$cache_root/bin
export PATH

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}
have() { command -v "$1" >/dev/null; }

# at_least LEAST VERSION: whether a version is as new as another.
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# Waits until no other process holds the lock; it is held as long as the shell lives.
lock_file() {
    have flock || die "flock is missing: install the Debian package util-linux and start again"
    exec {lock}>"$1" || die "cannot write into ${1%/*}; set RETROVISOR_CACHE to a folder that can be written"
    flock -n "$lock" && return
    say "another set-up is at work on ${1%/*}, waiting for it"
    flock "$lock"
}
