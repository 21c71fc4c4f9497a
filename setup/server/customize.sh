#!/usr/bin/env bash
# Turns a freshly installed Debian system, whose root folder is $1, into the server guest.
set -euo pipefail
root=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

printf '/dev/vda / ext4 errors=remount-ro 0 1\n' >"$root/etc/fstab"
echo server >"$root/etc/hostname"
printf '127.0.0.1 localhost server\n' >"$root/etc/hosts"

# A log in on the first serial port, a shell that reads one command a line on the second.
chroot "$root" systemctl enable --quiet serial-getty@ttyS0.service
install -m 755 "$here/control-shell" "$root/usr/local/sbin/control-shell"
install -m 644 "$here/control-shell.service" "$root/etc/systemd/system/"

# Data checksums, so that a page of the database that changed by itself is noticed.
version=$(ls "$root/usr/lib/postgresql")
chroot "$root" pg_dropcluster "$version" main
chroot "$root" pg_createcluster "$version" main -- --data-checksums >/dev/null

install -m 755 "$here/load" "$root/usr/local/sbin/load"
install -m 755 "$here/check-data" "$root/usr/local/sbin/check-data"
install -m 644 "$here/load.service" "$root/etc/systemd/system/"
echo '* * * * * root find /usr/share/doc -type f | head -n 500 | xargs md5sum >/var/tmp/doc.md5' >"$root/etc/cron.d/digest"
chroot "$root" systemctl enable --quiet control-shell.service load.service
