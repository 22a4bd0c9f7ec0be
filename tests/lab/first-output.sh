#!/bin/bash
# How long from `kiai run --rootfs` to the first output of `echo`, and the VM exits until then. Run in the lab,
# whose deterministic clock counts instructions:
#   cargo xtask lab --deterministic --with tests/lab/first-output.sh:/root/first-output -- \
#       bash first-output [RUNS [OPTION OF kiai run…]]
set -eu
rootfs=${KIAI_TEST_IMAGES:?}/busybox-rootfs
runs=${1:-5}
[ $# = 0 ] || shift
for run in $(seq "$runs"); do
    mkfifo input output
    start=$(date +%s%N)
    kiai run --rm -i --network none "$@" --rootfs "$rootfs" sh -c 'echo first; read -r line' < input > output &
    exec 4> input 3< output
    read -r line <&3
    end=$(date +%s%N)
    exits=$(cat /sys/kernel/debug/kvm/exits)
    shim=/proc/$(pgrep -f containerd-shim-kiai-v2 | head -n 1)
    all=$(awk '/^Pss:/ {print $2}' "$shim/smaps_rollup")
    # Guest RAM is what asks for huge pages and is not given to children.
    guest=$(awk '/^Pss:/ {pss = $2} /^VmFlags:.* dc .* hg/ {sum += pss} END {print sum + 0}' "$shim/smaps")
    echo "run $run: $(((end - start) / 1000)) us to \"$line\"; VM exits $exits; PSS $((all - guest)) KiB, guest RAM $guest KiB"
    exec 4>&-
    wait
    exec 3<&-
    rm input output
done
