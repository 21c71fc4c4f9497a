# shellcheck shell=bash
# Programs from Debian packages, unpacked into the cache with the libraries that they need, and changed so that they run there.
# Sourced; needs common.sh and apt.sh.

# unpack_programs FOLDER LIBC WHAT PACKAGE... : unpacks packages with their dependencies to FOLDER. The programs in its usr/bin and
# usr/sbin then run from there. LIBC is `fit`: the C library of this machine if it is as new as the packages', else theirs; or
# `none`: programs are left as they are, and who starts them names the folder `libraries` in LD_LIBRARY_PATH.
unpack_programs() {
    local folder=$1 libc=$2 what=$3 label new files=() file log
    shift 3
    label="$folder $libc ${suite:-own} $*"
    [ "$(cat "$folder/complete" 2>/dev/null)" != "$label" ] || return 0

    mkdir -p "${folder%/*}"
    # The caller has the lock: what is there of these is of a run that was stopped.
    log=$folder.log
    new=$folder.new
    rm -rf "$new"
    if ! fetch_with_dependencies "$what" patchelf "$@" 3>&2 >"$log" 2>&1; then
        grep -E '^(E|W|Err):?' "$log" | tail -n 5 >&2 || true
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
    # As on a machine where /bin, /lib and the like are links.
    mkdir -p "$new"/usr/{bin,sbin,lib,lib64}
    for file in bin sbin lib lib64; do ln -s "usr/$file" "$new/$file"; done
    for file in "${files[@]}"; do
        dpkg-deb --fsys-tarfile "$file" | tar -x -C "$new" --keep-directory-symlink --no-same-owner \
            --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./etc' --exclude='./var' || {
            rm -rf "$new"
            die "could not unpack ${file##*/} (is the disk full?): start again"
        }
    done
    relink "$new"
    if [ "$libc" = none ]; then link_libraries "$new"; else adapt_programs "$new" "$folder"; fi
    echo "$label" >"$new/complete"
    rm -rf "$folder"
    mv "$new" "$folder"
    rm -f "${files[@]}"
}

# Links that begin with / are meant within the folder.
relink() {
    local link target
    while IFS=$'\t' read -r link target; do
        if [ -e "$1$target" ] || [ -L "$1$target" ]; then ln -sfnr "$1$target" "$link"; fi
    done < <(find "$1" -type l -lname '/*' -printf '%p\t%l\n')
}

# The files of the C library, as an extended expression for find.
c_library='.*/(ld-[^/]*|libc\.so\.6|lib(m|mvec|pthread|rt|dl|resolv|util|anl|thread_db|BrokenLocale|c_malloc_debug|nsl|nss_[a-z]+|memusage|pcprofile)[-.0-9]*\.so[.0-9]*)'

# The libraries apart from the C library, in a folder of their own.
link_libraries() {
    mkdir "$1/libraries"
    (cd "$1/libraries" && find ../usr/lib/x86_64-linux-gnu -maxdepth 1 -regextype posix-extended -name '*.so*' ! -regex "$c_library" -exec ln -s -t . {} +)
}

# Programs look for libraries in the folder first, and start with its loader where they use its C library.
adapt_programs() {
    local new=$1 final=$2 libraries=usr/lib/x86_64-linux-gnu program interpreter=() version
    local loader=$new/usr/lib64/ld-linux-x86-64.so.2
    local patch=("$loader" --library-path "$new/$libraries" "$new/patchelf")
    cp "$new/usr/bin/patchelf" "$new/patchelf"
    version=$("$loader" --version | sed -nE '1s/.* ([0-9]+\.[0-9]+)\.?$/\1/p')
    if ! at_least "$version" "$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)"; then
        interpreter=(--set-interpreter "$final/usr/lib64/ld-linux-x86-64.so.2")
    fi
    while read -r program; do
        [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
        # Some libraries have an interpreter too, the C library for one.
        if [[ $program != *.so* ]] && "${patch[@]}" --print-interpreter "$program" >/dev/null 2>&1; then
            "${patch[@]}" "${interpreter[@]}" --force-rpath --set-rpath "$final/$libraries" "$program"
        elif [ -n "$("${patch[@]}" --print-rpath "$program" 2>/dev/null)" ]; then
            # A library with a path of its own would hide the program's.
            fix_rpath "$program"
        fi
    done < <(find "$new/usr/bin" "$new/usr/sbin" "$new/$libraries" "$new/usr/lib/gcc" "$new/usr/libexec" -type f \
        \( -perm -100 -o -name '*.so*' \) -size +1k 2>/dev/null)
    if [ ${#interpreter[@]} -eq 0 ]; then
        # The C library and the loader are of one piece: either all are the machine's or none.
        find "$new/$libraries" -maxdepth 1 -regextype posix-extended -regex "$c_library" -delete
        rm -f "$loader"
    fi
    rm -f "$new/patchelf"
}

fix_rpath() {
    local old
    old=$("${patch[@]}" --print-rpath "$1")
    "${patch[@]}" --force-rpath --set-rpath "$(sed -E "s,(^|:)/,\1$final/,g" <<<"$old"):$final/$libraries" "$1"
}
