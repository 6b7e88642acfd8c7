#!/bin/busybox sh
# PID 1 of a microVM: drivers, drives, network, and then the guest agent as PID 1 of a process namespace of its own.
#
# Drives, in the order of the machine's configuration (runtimes/firecracker/plan.py):
#   vda  the template's image, EROFS, shared, read-only      vdb  what this machine writes, ext4
#   vdc  the guest agent, EROFS, shared, read-only           vdd  what the host asks for, a tar, read-only
#   vde  512 bytes for how it ended: "exit STATUS KILLS", or "failed WHY"
#
# It stays in the initramfs, under the sandbox's root: nothing of it is seen or needed there. As in every runtime the
# agent sees itself as PID 1, and all it started ends with it.

export PATH=/bin
b=/bin/busybox

end() {
    echo "$*" > /dev/vde
    $b sync
    # The only way to end a microVM from inside: reboot=k makes it a reset, at which the monitor ends.
    $b reboot -f
}
fail() {
    echo "firebrick-init: $*"
    end "failed $*"
    $b sleep 60
}

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
while read -r module; do
    $b insmod "/modules/$module.ko" || echo "firebrick-init: $module cannot be loaded"
done < /modules/order
$b rm -rf /modules
$b mount -t devtmpfs dev /dev
[ -b /dev/vde ] || fail "the drives are not there"
# The host speaks to the agent there, and would wait for it in vain.
[ -c /dev/vsock ] || fail "the kernel has no vsock"

$b tar -x -f /dev/vdd -C /spec || fail "the description of the machine cannot be read"
# Sets hostname, address, gateway, mtu, outward_mtu, process_count and how to start the program: `program`.
. /spec/machine

$b mount -t erofs -o ro /dev/vda /image || fail "the image cannot be mounted"
# No table is filled behind our back, and what is deleted is given back to the host.
$b mount -t ext4 -o noatime,discard,noinit_itable,errors=remount-ro /dev/vdb /disk || fail "the disk cannot be mounted"
if [ ! -d /disk/upper ]; then
    $b mkdir -m 755 /disk/upper || fail "the disk cannot be written"
fi
# An overlay leaves marks in its work directory that a later one may refuse; what is in it is of no use.
$b rm -rf /disk/work
$b mkdir -m 700 /disk/work || fail "the disk cannot be written"
$b mount -t overlay -o lowerdir=/image,upperdir=/disk/upper,workdir=/disk/work,index=off,metacopy=off,redirect_dir=on,xino=auto sandbox /root ||
    fail "image and disk cannot be laid over one another"
# The host's view of them ends here, and the sandbox's begins.
cd /root || fail "there is no root"

for place in proc sys dev .firebrick; do
    [ ! -L $place ] || $b rm $place
    [ -d $place ] || $b mkdir -m 755 $place
done
$b mount -t erofs -o ro,nosuid,nodev /dev/vdc .firebrick || fail "the guest agent cannot be mounted"
$b mount -t sysfs -o nosuid,nodev,noexec sysfs sys
$b mount -t devtmpfs -o nosuid,noexec dev dev
$b mkdir -p dev/pts dev/shm dev/mqueue
$b mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
$b mount -t tmpfs -o nosuid,nodev,mode=1777 shm dev/shm
$b mount -t mqueue -o nosuid,nodev,noexec mqueue dev/mqueue
$b ln -sf /proc/self/fd dev/fd
$b ln -sf fd/0 dev/stdin
$b ln -sf fd/1 dev/stdout
$b ln -sf fd/2 dev/stderr
$b ln -sf pts/ptmx dev/ptmx

# The sandbox's processes are one group, so that their number is bounded and kills for memory are counted.
$b mount -t cgroup2 -o nosuid,nodev,noexec groups /groups
echo "+pids +memory +cpu" > /groups/cgroup.subtree_control
$b mkdir /groups/sandbox
echo "$process_count" > /groups/sandbox/pids.max
$b mount -o bind /groups/sandbox sys/fs/cgroup

if [ -d /spec/files ]; then
    (cd /spec/files && $b find . -type f) | while read -r file; do
        target=${file#./}
        $b mkdir -p "${target%/*}"
        [ ! -L "$target" ] || $b rm "$target"
        [ -e "$target" ] || : > "$target"
        $b mount -o bind "/spec/files/$target" "$target" && $b mount -o remount,bind,ro "$target"
    done
fi

$b hostname "$hostname"
$b ip link set lo up
if [ -n "$address" ]; then
    echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
    $b ip addr add "$address" dev eth0
    # As the slot's link, for between host and guest nothing is a wire; what goes beyond the host keeps to Ethernet's.
    $b ip link set eth0 mtu "$mtu" up
    [ -z "$gateway" ] || $b ip route add default via "$gateway" mtu "$outward_mtu"
fi
# A user may ping and listen on any port, as under the other runtimes.
echo "0 2147483647" > /proc/sys/net/ipv4/ping_group_range
echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start
# More for the kernel's own work in small machines than it takes by itself, or it dies before it can kill for memory.
echo 4096 > /proc/sys/vm/min_free_kbytes

$b mount -o move . /
# From here on `.` is the root of all there is; our own `/` lies hidden below it. The reading of /spec/machine again is
# for the shell of the new process namespace.
$b unshare --pid --fork $b sh -c '
    b=/bin/busybox
    . /spec/machine
    $b mount -t proc -o nosuid,nodev,noexec proc proc
    echo 0 > /groups/sandbox/cgroup.procs
    # When memory ends it may go, and what it starts sooner.
    echo 100 > /proc/self/oom_score_adj
    ulimit -c 0
    ulimit -n 65536
    ulimit -u "$process_count"
    exec < dev/null
    program
'
status=$?
kills=0
while read -r name count; do
    [ "$name" != oom_kill ] || kills=$count
done < /groups/sandbox/memory.events
end "exit $status $kills"
