#!/usr/bin/env bash
# usage: setup/libvirtd.sh LIBVIRT FOLDER [LINE...]
# Runs libvirtd of setup/libvirt.sh (whose output LIBVIRT is) in a root file system of its own below FOLDER, with mounts, processes
# and network apart from this machine's: it neither finds nor changes anything here, and its processes end with this script, also
# when that is killed. FOLDER has the same path inside. Outside, the socket is FOLDER/root/run/libvirt/libvirt-sock. Each LINE is
# added to qemu.conf. Needs root.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: setup/libvirtd.sh LIBVIRT FOLDER [LINE...]" >&2
    exit 2
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "setup/libvirtd.sh: this needs root, to mount the file systems of libvirtd's own root" >&2
    exit 1
fi
libvirt=$1 folder=$2 root=$2/root
shift 2
mkdir -p "$root"/{dev,drivers,etc/libvirt,proc,run,sys,tmp,usr,var} "$root$folder"
for name in bin sbin lib lib64; do ln -sfn "usr/$name" "$root/$name"; done
# Without the drivers of networks, storage pools and host devices.
ln -sfn /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so "$root/drivers/"
# The user and the group of QEMU, as Debian's packages make them.
printf '%s:x:%d:%d::/:/bin/false\n' root 0 0 libvirt-qemu 64055 64055 >"$root/etc/passwd"
printf '%s:x:%d:\n' root 0 libvirt-qemu 64055 >"$root/etc/group"
# Without a system bus, control groups, a security driver and virtlogd.
cat >"$root/etc/libvirt/qemu.conf" <<'END'
group = "libvirt-qemu"
namespaces = []
cgroup_controllers = []
security_driver = "none"
stdio_handler = "file"
END
printf '%s\n' "$@" >>"$root/etc/libvirt/qemu.conf"

export libvirt folder root
# unshare ends its child, the first process of the namespace, and so the kernel all of them, when this process ends.
# shellcheck disable=SC2016 # for the inner shell
exec setpriv --pdeathsig KILL unshare --mount --pid --net --ipc --fork --kill-child=KILL bash -euc '
    mount --bind -o ro "$libvirt/usr" "$root/usr"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount --rbind /sys "$root/sys"
    mount -t proc proc "$root/proc"
    mount --bind "$folder" "$root$folder"
    export PATH=/usr/sbin:/usr/bin HOME=/ LIBVIRT_DRIVER_DIR=/drivers
    # The shell stays, for the first process must wait for those whose parents ended.
    chroot "$root" /usr/sbin/libvirtd &
    wait $!
'
