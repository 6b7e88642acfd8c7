#!/bin/sh
# What systemd would do, as far as tests need it; busybox init calls this first. No udev: device mapper makes its own nodes.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -o remount,rw /
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# A process of the root group may stay there although controllers are handed down: that is so for the root alone.
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
  echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
modprobe -a virtio_net virtio_rng kvm-amd tun vhost_vsock vsock_loopback dm-thin-pool dm-snapshot loop nbd erofs squashfs overlay xfs veth nf_tables nft_chain_nat
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
echo nameserver 10.0.2.3 > /etc/resolv.conf
ip link set eth1 name lan
ulimit -n 1048576
