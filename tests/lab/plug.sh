#!/bin/bash
# How long `kiai plug` and `unplug` take from the command to its end, when what was plugged in can be used, and the VM
# exits meanwhile; below, the part of it that is the shim's and the guest's, without the command and CNI. Run in the
# lab, whose deterministic clock counts instructions:
#   cargo xtask lab --deterministic --with tests/lab/plug.sh:/root/plug -- bash plug [RUNS]
# and with --vfio or --iommufd also PCI functions: a disk the guest drives, and one that a program in the container does.
set -eu
rootfs=${KIAI_TEST_IMAGES:?}/busybox-rootfs
mkdir /scratch/volume
truncate -s 64M /scratch/disk
disk=$(losetup --find --show /scratch/disk)
id=$(kiai run -d --name measured --rootfs "$rootfs" sleep 3600)
function_of() {
    for at in /sys/bus/pci/devices/*; do
        if [ "$(cat "$at/vendor" "$at/device" | tr '\n' ' ')" = "$1 $2 " ]; then basename "$at"; fi
    done
}
nvme=$(function_of 0x1b36 0x0010)
edu=$(function_of 0x1234 0x11e8)
for function in $nvme $edu; do
    kiai devices bind "$function"
done
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
    if [ -n "$nvme" ]; then
        measure plug measured --device "pci:$nvme"
        measure unplug measured --device "pci:$nvme"
        measure plug measured --device "pci:$edu,user-space"
        measure unplug measured --device "pci:$edu"
    fi
done
grep -oE '(un)?plugged.*' "/run/kiai/default/containers/$id/bundle/shim.log"
kiai rm -f measured
