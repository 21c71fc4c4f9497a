# shellcheck shell=bash
# The guest's files: kernel, initramfs, disk and the manifest that describes them. Sourced by guest.sh.

sources=$root/tests/guests
disk_mib=64

# One value of the manifest, which image.sh wrote itself: one "name": "value" a line.
manifest_value() {
    sed -n "s/^ *\"$1\": \"\([^\"]*\)\".*/\1/p" "$cache/manifest.json" | head -n 1
}

# True when all files are there, unharmed, and made from the sources of now.
guest_is_current() {
    [ -f "$cache/manifest.json" ] || return 1
    [ "$(manifest_value kernel_package)" = "$kernel_package" ] || return 1
    [ "$(manifest_value sources_sha256)" = "$(sources_sum)" ] || return 1
    local file
    for file in vmlinuz initramfs.cpio.gz disk.raw; do
        if [ ! -f "$cache/$file" ]; then
            say "$file is missing, making the guest again"
            return 1
        fi
        if [ "$(manifest_value "$file")" != "$(sum_of "$cache/$file")" ]; then
            say "$file was changed since it was made, making the guest again"
            return 1
        fi
    done
}

sum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

# What the image is made of, apart from the packages.
sources_sum() {
    {
        rustc --version
        cd "$root" || exit
        find setup/image.sh tests/guests -type f -print0 | sort -z | xargs -0 sha256sum
    } | sum_of /dev/stdin
}

make_image() {
    local unpacked=$new/unpacked tree=$new/tree package modules release vmlinuz
    say "unpacking kernel and busybox"
    for package in "$cache"/packages/*.deb; do
        dpkg-deb -x "$package" "$unpacked" || {
            rm -f "$package"
            die "${package##*/} was broken (or the disk is full) and is removed: start again"
        }
    done
    vmlinuz=$(find "$unpacked" -name 'vmlinuz*' -type f -size +1M | head -n 1)
    modules=$(find "$unpacked" -path '*/lib/modules/*' -name kernel -type d | head -n 1)
    busybox=$(find "$unpacked" -name busybox -type f -perm -100 | head -n 1)
    if [ -z "$vmlinuz" ] || [ -z "$modules" ] || [ -z "$busybox" ]; then
        die "the packages in $cache/packages hold no kernel, modules or busybox; remove that folder and start again"
    fi
    modules=${modules%/kernel}
    release=${modules##*/}
    cp "$vmlinuz" "$new/vmlinuz"

    say "building the guest's own programs"
    build_workload
    say "packing the initramfs for kernel $release"
    make_tree
    pack_tree
    make_disk
    write_manifest >"$new/manifest.json"
    # The manifest goes last: it vouches for the others. What did not change stays as it is, under the
    # guests that run from it.
    local file
    for file in vmlinuz initramfs.cpio.gz disk.raw manifest.json; do
        cmp -s "$new/$file" "$cache/$file" || mv "$new/$file" "$cache/$file"
    done
}

# A target folder of its own, so that other flags do not throw away the main build.
build_workload() {
    local target=x86_64-unknown-linux-gnu folder=${CARGO_TARGET_DIR:-$root/target}/guest
    (
        cd "$root"
        unset CARGO_ENCODED_RUSTFLAGS
        RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" CARGO_TARGET_DIR=$folder \
            cargo build --quiet --release --target "$target" -p retrovisor-workload -p retrovisor-witness {lock}>&-
    ) || die "the guest's own programs could not be built"
    programs=$folder/$target/release
}

make_tree() {
    mkdir -p "$tree"/{bin,data,dev,etc,lib/modules,proc,root,run,srv,sys,tmp,var/log}
    cp "$busybox" "$tree/bin/busybox"
    local applet
    "$busybox" --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    cp "$programs"/{workload,witness} "$tree/bin/"
    ln -s workload "$tree/bin/runaway"
    cp "$sources/linux/init" "$tree/init"
    cp "$sources"/linux/{housekeeper,shell-on-port,fetcher} "$tree/bin/"
    echo "It works." >"$tree/srv/index.html"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/:/bin/false \
        work:x:1000:1000:work:/data:/bin/sh >"$tree/etc/passwd"
    printf '%s\n' root:x:0: daemon:x:1: work:x:1000: >"$tree/etc/group"
    local name optional
    while read -r name optional; do
        add_module "$name" "$optional"
    done < <(sed 's/#.*//; /^ *$/d' "$sources/linux/modules")
}

# Adds one kernel module after those it depends on, and notes the order for the guest's init.
# The package has no modules.dep (it is made at installation), so the modules' own words are used.
add_module() {
    local name=${1//-/_} file plain depends part
    file=$(find "$modules" -name "*.ko*" | while read -r file; do
        plain=${file##*/}
        plain=${plain%%.ko*}
        if [ "${plain//-/_}" = "$name" ]; then echo "$file"; fi
    done | head -n 1)
    if [ -z "$file" ]; then
        if sed 's|.*/||; s|\.ko$||; s|-|_|g' "$modules/modules.builtin" | grep -qx "$name"; then return; fi
        if [ "${2:-}" = "?" ]; then return; fi
        die "kernel $release has no module $1; take it out of tests/guests/linux/modules or choose another kernel"
    fi
    plain=$tree/lib/modules/$name.ko
    if [ -f "$plain" ]; then return; fi
    case $file in
    *.xz) "$busybox" xz -dc "$file" >"$plain" ;;
    *.gz) gzip -dc "$file" >"$plain" ;;
    *.zst) zstd -qdc "$file" >"$plain" ;;
    *) cp "$file" "$plain" ;;
    esac
    depends=$(tr '\0' '\n' <"$plain" | sed -n 's/^depends=//p' | head -n 1)
    for part in ${depends//,/ }; do
        add_module "$part"
    done
    echo "$name.ko" >>"$tree/lib/modules/order"
}

# The same sources give the same bytes, apart from inode numbers.
pack_tree() {
    find "$tree" -exec touch -h -d @0 {} +
    (cd "$tree" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0) 2>/dev/null | gzip -9n >"$new/initramfs.cpio.gz"
}

# Fixed identifiers and times: a disk that is made again is the same, and overlays on it stay right.
make_disk() {
    truncate -s "${disk_mib}M" "$new/disk.raw"
    E2FSPROGS_FAKE_TIME=1700000000 mke2fs -q -F -t ext4 -b 4096 -L data -J size=4 -m 0 \
        -U 5b1f2a52-6d6c-4c1e-9d0e-726574727600 \
        -E hash_seed=5b1f2a52-6d6c-4c1e-9d0e-726574727631,lazy_itable_init=0,lazy_journal_init=0 "$new/disk.raw"
}

write_manifest() {
    local package file
    printf '{\n  "kernel_release": "%s",\n  "kernel_package": "%s",\n' "$release" "$kernel_package"
    printf '  "sources_sha256": "%s",\n  "packages": {\n' "$(sources_sum)"
    for package in "$cache"/packages/*.deb; do
        printf '    "%s": "%s",\n' "$(dpkg-deb -f "$package" Package)" "$(dpkg-deb -f "$package" Version)"
    done | sed '$ s/,$//'
    printf '  },\n  "sha256": {\n'
    for file in vmlinuz initramfs.cpio.gz disk.raw; do
        printf '    "%s": "%s",\n' "$file" "$(sum_of "$new/$file")"
    done | sed '$ s/,$//'
    printf '  }\n}\n'
}
