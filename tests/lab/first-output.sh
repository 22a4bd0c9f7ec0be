#!/bin/bash
# How long from `kiai run --rootfs` to the first output of `echo`, and the VM exits until then. Run in the lab,
# whose deterministic clock counts instructions:
#   cargo xtask lab --deterministic --with tests/lab/first-output.sh:/root/first-output -- bash first-output [N]
set -eu
rootfs=${KIAI_TEST_IMAGES:?}/busybox-rootfs
for run in $(seq "${1:-5}"); do
    mkfifo hold
    start=$(date +%s%N)
    exec 3< <(kiai run --rm -i --network none --rootfs "$rootfs" sh -c 'echo first; read -r line' < hold)
    exec 4> hold
    read -r line <&3
    end=$(date +%s%N)
    exits=$(cat /sys/kernel/debug/kvm/exits)
    pid=$(pgrep -f 'containerd-shim-kiai-v2' | head -n 1)
    pss=$(awk '/^Pss:/ {sum += $2} END {print sum}' "/proc/$pid/smaps_rollup")
    guest=$(awk '/kiai-ram/ {ram = 1; next} /^[0-9a-f]+-/ {ram = 0} ram && /^Pss:/ {sum += $2} END {print sum + 0}' "/proc/$pid/smaps")
    echo "run $run: $(((end - start) / 1000)) us to \"$line\"; VM exits: $exits; PSS: $((pss - guest)) KiB and guest RAM $guest KiB"
    exec 4>&-
    cat <&3 > /dev/null
    exec 3<&-
    rm hold
done
