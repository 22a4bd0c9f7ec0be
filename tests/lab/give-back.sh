#!/bin/bash
# How fast memory that a container has freed is with the host again. Run in the lab, whose deterministic clock counts
# instructions:
#   cargo xtask lab --deterministic --with tests/lab/give-back.sh:/root/give-back -- bash give-back [RUNS]
# A program writes to 512 MiB and ends; its container sleeps. Printed is when 25, 50 and 90 % of them were back with the
# host, from the moment the container says so, and the VM exits until then.
set -eu
rootfs=${KIAI_TEST_IMAGES:?}/busybox-rootfs
holder='echo ready; read -r _; dd if=/dev/zero of=/dev/null bs=512M count=1 2> /dev/null; echo freed; read -r _'
for run in $(seq "${1:-3}"); do
    mkfifo input output
    kiai run --rm -i -m 640m --network none --rootfs "$rootfs" sh -c "$holder" < input > output &
    exec 4> input 3< output
    read -r _ <&3
    shim=/proc/$(pgrep -f containerd-shim-kiai-v2 | head -n 1)
    read -r _ before _ < "$shim/statm"
    echo >&4
    read -r _ <&3
    start=$(date +%s%N) exits=$(cat /sys/kernel/debug/kvm/exits)
    line="run $run:"
    for percent in 25 50 90; do
        pages=$((512 * 256 * (100 - percent) / 100))
        while read -r _ now _ < "$shim/statm"; [ $((now - before)) -gt $pages ]; do
            # Nothing comes of this before the end: it only leaves the CPU to the guest.
            read -rt 0.01 _ <&3 || :
        done
        line+=" $percent % after $((($(date +%s%N) - start) / 1000)) us,"
    done
    echo "$line VM exits $(($(cat /sys/kernel/debug/kvm/exits) - exits))"
    echo >&4
    wait
    exec 3<&- 4>&-
    rm input output
done
