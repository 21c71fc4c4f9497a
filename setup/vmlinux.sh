#!/usr/bin/env bash
# usage: setup/vmlinux.sh VMLINUZ VMLINUX
# Unpacks the ELF file of a bzImage: the kernel as the compiler made it.
set -euo pipefail
image=$1
out=$2

# Little-endian numbers of the boot protocol's header.
number() { od -An -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
[ "$(dd if="$image" bs=1 skip=514 count=4 status=none)" = HdrS ] || {
    echo "vmlinux: $image is no bzImage" >&2
    exit 1
}
setup=$(number 497 1)
offset=$((($([ "$setup" = 0 ] && echo 4 || echo "$setup") + 1) * 512 + $(number 584 4)))
length=$(number 588 4)
payload() { dd if="$image" iflag=skip_bytes,count_bytes skip="$offset" count="$length" bs=1M status=none; }

magic=$(od -An -t x1 -j "$offset" -N 4 "$image" | tr -d ' \n')
case $magic in
1f8b*) unpack=(gzip -dc) ;;
fd377a58) unpack=(xz -dc) ;;
28b52ffd) unpack=(zstd -dc) ;;
02214c18) unpack=(lz4 -dc) ;;
7f454c46) unpack=(cat) ;;
*)
    echo "vmlinux: $image is compressed in a way that is not known: $magic" >&2
    exit 1
    ;;
esac
# The length follows the data; the program reports it as an error after unpacking everything.
payload | "${unpack[@]}" >"$out" 2>/dev/null || true
[ "$(head -c 4 "$out" | tail -c 3)" = ELF ] || {
    echo "vmlinux: ${unpack[0]} did not unpack $image" >&2
    exit 1
}
