#!/bin/sh
# Runs on the host, once the packages are in: finish.sh <root of the new system> <files to lay over it>
set -eu
root=$1
files=$2

# Owners and modes do not depend on the checkout's umask; directories that exist keep theirs (/root is 0700).
tar -C "$files" --owner=0 --group=0 --mode=u=rwX,go=rX -cf - . | tar -C "$root" --no-overwrite-dir -xf -
chmod 0440 "$root/etc/sudoers.d/user"

chroot "$root" useradd --create-home --uid 1000 --user-group --groups sudo --shell /bin/bash user
chroot "$root" passwd --quiet --delete user

# Every command is run by `bash -l -c`. Debian's statically linked build of the same bash starts in about 60 % of
# the time where starting is dear (gVisor); dpkg knows of it, and the other one stays beside it.
chroot "$root" dpkg-divert --quiet --local --rename --divert /bin/bash.distrib --add /bin/bash
cp -p "$root/bin/bash-static" "$root/bin/bash"

# /etc/profile sets LANG, and a shell then loads its locale: from an archive with 4 system calls, else with 65.
chroot "$root" localedef --add-to-archive /usr/lib/locale/C.utf8 >/dev/null

# Programs install for everybody without sudo, as the users of such sandboxes expect.
mkdir -p "$root/code"
chmod -R 0777 "$root/usr/local" "$root/code"

# Plain files: the node mounts its own over them.
for name in hosts hostname resolv.conf; do
  rm -f "$root/etc/$name"
done
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
echo sandbox > "$root/etc/hostname"
: > "$root/etc/resolv.conf"

# The host's proxy is not reachable from inside.
if [ -f "$root/etc/apt/apt.conf.d/99mmdebstrap" ]; then
  sed -i '/[Pp]roxy/d' "$root/etc/apt/apt.conf.d/99mmdebstrap"
fi

ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
: > "$root/etc/machine-id"
rm -rf "$root/var/log/"*.log "$root/var/log/apt" "$root/var/cache/ldconfig/aux-cache" "$root/var/lib/dpkg/"*-old
