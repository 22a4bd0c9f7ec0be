#!/bin/bash
# How long `kiai plug` and `unplug` take from the command to its end, when what was plugged in can be used, and the VM
# exits meanwhile; below, the part of it that is the shim's and the guest's, without the command and CNI. Run in the
# lab, whose deterministic clock counts instructions:
#   cargo xtask lab --deterministic --with tests/lab/plug.sh:/root/plug -- bash plug [RUNS]
set -eu
rootfs=${KIAI_TEST_IMAGES:?}/busybox-rootfs
mkdir /scratch/volume
truncate -s 64M /scratch/disk
disk=$(losetup --find --show /scratch/disk)
id=$(kiai run -d --name measured --rootfs "$rootfs" sleep 3600)
measure() {
    exits=$(cat /sys/kernel/debug/kvm/exits) start=$(date +%s%N)
    kiai "$@" > /dev/null
    end=$(date +%s%N)
    echo "$(((end - start) / 1000)) us, VM exits $(($(cat /sys/kernel/debug/kvm/exits) - exits)): kiai $*"
}
for _ in $(seq "${1:-3}"); do
    # What any command costs, and one that goes to the guest and back.
    measure inspect measured
    measure exec measured true
    measure plug measured -v /scratch/volume:/data
    measure unplug measured -v /data
    measure plug measured --network default
    measure unplug measured --network eth1
    measure plug measured --device "$disk:/dev/x"
    measure unplug measured --device /dev/x
    measure plug measured -v /scratch/volume:/data --network default --device "$disk:/dev/x"
    measure unplug measured -v /data --network eth1 --device /dev/x
done
grep -oE '(un)?plugged.*' "/run/kiai/default/containers/$id/bundle/shim.log"
kiai rm -f measured
