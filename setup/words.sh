#!/usr/bin/env bash
# usage: setup/words.sh [FOLDER...]
# Finds the words of setup/retired-words.txt in the tracked files (or those of some folders) and names the standard words.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
list=setup/retired-words.txt

files=()
for folder in "${@:-.}"; do
    folder=${folder%/}/
    folder=${folder#./}
    for kind in '*.rs' '*.md' '*.proto' '*.sql' '*.sh' '*.toml' Makefile; do
        files+=(":(glob)$folder**/$kind")
    done
done
files+=(':(exclude)CHANGELOG.md' ":(exclude)$list")

found=$(mktemp)
trap 'rm -f "$found"' EXIT
number=0
while IFS= read -r line; do
    number=$((number + 1))
    case $line in '' | '#'*) continue ;; esac
    pattern=${line%% #*}
    pattern=$(sed -E 's/[[:space:]]+$//' <<<"$pattern")
    word=$(sed -nE 's/^[^#]*[[:space:]]#[[:space:]]*//p' <<<"$line")
    flags=(-i)
    if [[ $pattern == =* ]]; then
        flags=()
        pattern=${pattern#=}
    fi
    # Letters and digits make a word: `_` parts the words of a name.
    after='($|[^[:alnum:]])'
    [[ $pattern =~ [[:alnum:]\)?]$ ]] || after=
    status=0
    git grep -I -n -o "${flags[@]}" -E -e "(^|[^[:alnum:]])($pattern)$after" -- "${files[@]}" >"$found.hits" || status=$?
    if [ "$status" -gt 1 ]; then
        rm -f "$found.hits"
        echo "$list:$number: the pattern $pattern cannot be used" >&2
        exit 2
    fi
    sed -E 's/^([^:]*:[0-9]+):[^[:alnum:]]*(.*[[:alnum:]:])[^[:alnum:]:]*$/\1: \2/' "$found.hits" | while IFS= read -r hit; do
        printf '%s -> %s\n' "$hit" "${word:-a standard word}"
    done >>"$found"
    rm -f "$found.hits"
done <"$list"

[ -s "$found" ] || exit 0
sort -t : -k 1,1 -k 2,2n "$found"
echo "$(wc -l <"$found") retired words; $list says which to use" >&2
exit 1
