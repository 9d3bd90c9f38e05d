# arm64 guests whose kernel gives each virtio device a restricted DMA pool of its own; one virtbay
# process serves them all, each device confined to its pool. Needs a kernel of its own
# (dma_pools/build-kernel.sh).
LIMIT=240
PATIENCE=8

MIB=$((1 << 20))
RAM=$((0x40000000))  # of QEMU's arm64 machine; the pools follow the main memory

# guest_layout MAIN_SIZE POOL_SIZE POOLS: where things lie. Each pool is a NUMA node of its own, so
# that it is a file of its own as well.
guest_layout() {
  MAIN=$1 POOL_SIZE=$2 POOL_COUNT=$3
  NUMA=(-m "$(((MAIN + POOL_COUNT * POOL_SIZE) / 1024))K"
    -object "memory-backend-memfd,id=main,size=$MAIN,share=on" -numa node,memdev=main,cpus=0-1)
  POOL=()
  local i
  for ((i = 0; i < POOL_COUNT; i++)); do
    POOL+=("$(printf '0x%x' $((RAM + MAIN + i * POOL_SIZE)))")
    NUMA+=(-object "memory-backend-memfd,id=pool$i,size=$POOL_SIZE,share=on"
      -numa "node,memdev=pool$i")
  done
  MACHINE=(-machine virt,gic-version=3 -cpu cortex-a57 -smp 2)
}

# guest_tree PLACE...: the device tree of the machine, in which each pool is reserved, and pool i
# belongs to the virtio-mmio transport N, to the PCI slot pciN, or to none ("-"). Without PLACE
# nothing is reserved.
guest_tree() {
  local i=0 place slot
  timeout 60 qemu-system-aarch64 "${MACHINE[@]}" -machine dumpdtb="$WORK/base.dtb" "${NUMA[@]}" \
    -display none >"$WORK/dtb.log" 2>&1
  # The tree as it comes has 1 MiB of room, which QEMU doubles; the kernel takes no larger one.
  if [ $# = 0 ]; then
    dtc -q -I dtb -O dtb -o "$WORK/guest.dtb" "$WORK/base.dtb" >>"$WORK/dtb.log" 2>&1
    return
  fi
  {
    echo '/dts-v1/; /plugin/;'
    echo '/ { fragment@0 { target-path = "/"; __overlay__ {'
    echo 'reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges;'
    for ((i = 0; i < POOL_COUNT; i++)); do
      printf 'pool%d: dmapool@%x { compatible = "restricted-dma-pool"; reg = <0 0x%x 0 0x%x>; };\n' \
        "$i" "${POOL[i]}" "${POOL[i]}" "$POOL_SIZE"
    done
    echo '};'
    i=0
    for place in "$@"; do
      case $place in
        -) ;;
        pci*)
          slot=${place#pci}
          printf 'pcie@10000000 { dev@%x,0 { reg = <0x%x 0 0 0 0>; memory-region = <&pool%d>; }; };\n' \
            "$slot" $((slot << 11)) $i ;;
        *)
          printf 'virtio_mmio@%x { memory-region = <&pool%d>; };\n' $((0xa000000 + place * 0x200)) $i ;;
      esac
      i=$((i + 1))
    done
    echo '}; }; };'
  } >"$WORK/pools.dts"
  dtc -q -I dts -O dtb -o "$WORK/pools.dtbo" "$WORK/pools.dts" >>"$WORK/dtb.log" 2>&1 &&
    fdtoverlay -i "$WORK/base.dtb" -o "$WORK/guest.dtb" "$WORK/pools.dtbo" >>"$WORK/dtb.log" 2>&1
}

# guest_boot "KERNEL PARAMETERS" TAG[,DEVICE OPTION...]...: TAG i on virtio-mmio transport i, or on
# PCI if the options say so with addr=.
guest_boot() {
  local parameters=$1 device i=0 devices=()
  shift
  for device; do
    devices+=(-chardev "socket,id=c$i,path=$WORK/${device%%,*}.sock" -device)
    case $device in
      *,addr=*) devices+=("vhost-user-fs-pci,chardev=c$i,tag=$device") ;;
      *) devices+=("vhost-user-fs-device,chardev=c$i,tag=$device,bus=virtio-mmio-bus.$i") ;;
    esac
    i=$((i + 1))
  done
  qemu_start qemu-system-aarch64 "${MACHINE[@]}" -accel tcg,thread=multi "${NUMA[@]}" \
    -global virtio-mmio.force-legacy=false -kernel "$KERNEL" -initrd "$TOP/initramfs.cpio" \
    -dtb "$WORK/guest.dtb" -append "console=ttyAMA0 quiet panic=-1 $parameters" "${devices[@]}" \
    ${GUEST_OPTIONS[@]+"${GUEST_OPTIONS[@]}"}
  guest_run "$LIMIT"
}

# pooled TAG POOL [,all]: a share that is confined to that pool, which others may have too.
pooled() {
  share "$1" "$WORK/$1" .swiotlb "\"$2,$POOL_SIZE${3-}\"" .rings '"pool"' .arena-size '"2M"'
  put_files "$1"
}
put_files() {
  head -c $((16 * MIB + 12345)) /dev/urandom >"$WORK/$1/data"
  (cd "$WORK/$1" && cksum data >sum)
}

# phase NAME: results and files of their own.
phase() {
  SUITE=dma_pools/$1
  WORK=$TOP/$1
  mkdir -p "$WORK"
}
phase_start() {
  service_file
  # Where the guest reports, over a virtio port.
  sed -i "/^control-socket/a guest-channel = \"unix:$WORK/report.sock\"" "$WORK/virtbay.toml"
  service_start "$WORK" "$WORK/virtbay.toml" && return
  fail "virtbay starts"
  return 1
}
served() {
  backend_check "$1: rings and buffers lie in its pool" served "$WORK/$1.json" "$2" "$POOL_SIZE" inside
  same_files "$1"
}
same_files() {
  cmp "$WORK/$1/data" "$WORK/$1/copy" && cmp "$WORK/$1/data" "$WORK/$1/direct" &&
    [ "$(wc -c <"$WORK/$1/small/49")" = $((49 * 137)) ]
  verdict $? "$1: the host has what the guest wrote"
}
refused() {
  backend_check "$1: no ring runs, and it is counted" refused "$WORK/$1.json"
  grep -aqE "warning $1: .* lies outside the pool at 0x" "$WORK/virtbay.log"
  verdict $? "$1: the log says why"
}

# reported I NODE: the guest has told of pool I, and whose it is.
reported() {
  grep -aqF "/reserved-memory/dmapool@${POOL[$1]#0x} is a pool for $2: swiotlb=${POOL[$1]},$POOL_SIZE" \
    "$WORK/virtbay.log"
  verdict $? "the host learns which pool is that of $2"
}

phase_pools() {
  phase pools
  guest_layout $((448 * MIB)) $((32 * MIB)) 3
  guest_tree 0 1 pci1 || { fail "device tree: $(tail -n 1 "$WORK/dtb.log")"; return; }
  suite_shares() {
    pooled fs0 "${POOL[0]}"
    pooled fs1 "${POOL[1]}"
    pooled pci "${POOL[2]}"
  }
  phase_start || return
  local GUEST_OPTIONS=(-chardev "socket,id=report,path=$WORK/report.sock"
    -device virtio-serial-device,bus=virtio-mmio-bus.8
    -device virtserialport,chardev=report,name=virtbay.guest)
  guest_boot "vb_good=fs0,fs1,pci vb_pools=3 vb_platform=3 vb_report=device:/dev/virtio-ports/virtbay.guest" \
    fs0,iommu_platform=on fs1,iommu_platform=on pci,iommu_platform=on,addr=1.0
  reported 0 /virtio_mmio@a000000
  reported 1 /virtio_mmio@a000200
  reported 2 /pcie@10000000/dev@1,0
  served fs0 "${POOL[0]}"
  served fs1 "${POOL[1]}"
  served pci "${POOL[2]}"
  backend_check "no other guest memory is mapped" mapped "$WORK/maps" $((3 * POOL_SIZE))
  service_check
}

# All of a request has to fit into the pool before the guest sends it.
phase_tiny() {
  phase tiny
  guest_layout $((448 * MIB)) $((256 * 1024)) 2
  guest_tree 0 1 || { fail "device tree: $(tail -n 1 "$WORK/dtb.log")"; return; }
  suite_shares() { pooled fs0 "${POOL[0]}"; pooled fs1 "${POOL[1]}"; }
  phase_start || return
  guest_boot "vb_good=fs0,fs1 vb_pools=2 vb_platform=2" fs0,iommu_platform=on fs1,iommu_platform=on
  served fs0 "${POOL[0]}"
  served fs1 "${POOL[1]}"
  service_check
}

# Everything that can be wrong at once, beside a device with which nothing is.
phase_wrong() {
  phase wrong
  guest_layout $((416 * MIB)) $((16 * MIB)) 6
  guest_tree 0 1 2 - 4 5 || { fail "device tree: $(tail -n 1 "$WORK/dtb.log")"; return; }
  suite_shares() {
    pooled swapped0 "${POOL[1]}"
    pooled swapped1 "${POOL[0]}"
    pooled physical "${POOL[2]}"
    pooled poolless "${POOL[3]}" ,all
    pooled right "${POOL[4]}"
    # Its rings are let in, wherever they lie; its buffers are not.
    share astray "$WORK/astray" .swiotlb "\"${POOL[3]},$POOL_SIZE,all\""
  }
  phase_start || return
  guest_boot "vb_good=right vb_refused=swapped0,swapped1,physical,poolless,astray \
vb_patience=$PATIENCE vb_pools=5 vb_platform=5" swapped0,iommu_platform=on \
    swapped1,iommu_platform=on physical,iommu_platform=off poolless,iommu_platform=on \
    right,iommu_platform=on astray,iommu_platform=on
  refused swapped0
  refused swapped1
  refused physical
  refused poolless
  backend_check "astray: no request reaches the device, and it is counted" astray "$WORK/astray.json"
  grep -aqE "warning astray: .* refused: buffer outside the device's memory" "$WORK/virtbay.log"
  verdict $? "astray: the log says why"
  served right "${POOL[4]}"
  backend_check "no other guest memory is mapped" mapped "$WORK/maps" $((6 * POOL_SIZE)) 262144
  service_check
}

# A kernel that has no pools at all: what is not confined works, what is confined is refused.
phase_none() {
  phase none
  guest_layout $((448 * MIB)) $((32 * MIB)) 2
  guest_tree || { fail "device tree: $(tail -n 1 "$WORK/dtb.log")"; return; }
  suite_shares() { pooled confined "${POOL[0]}"; share free "$WORK/free"; put_files free; }
  phase_start || return
  guest_boot "vb_good=free vb_refused=confined vb_patience=$PATIENCE vb_pools=0 vb_platform=2" \
    confined,iommu_platform=on free,iommu_platform=on
  refused confined
  same_files free
  service_check
}

suite_run() {
  local TOP=$WORK
  amd64_with qemu-system-aarch64 dtc fdtoverlay cpio aarch64-linux-gnu-gcc aarch64-linux-gnu-g++ python3 || return
  if ! KERNEL=$("$HERE/dma_pools/build-kernel.sh" 2>"$TOP/kernel.log"); then
    fail "the guest's kernel is built"
    sed 's/^/    /' "$TOP/kernel.log"
    return
  fi
  mkdir "$TOP/root"
  if ! aarch64-linux-gnu-gcc -std=c11 -O2 -Wall -Wextra -Werror -static -o "$TOP/root/init" \
    "$HERE/dma_pools/init.c" >"$TOP/init.log" 2>&1; then
    fail "the guest's init is built"
    sed 's/^/    /' "$TOP/init.log"
    return
  fi
  if ! aarch64-linux-gnu-g++ -std=c++20 -Os -Wall -Wextra -Werror -static -s -I "$ROOT" \
    -DVIRTBAY_VERSION='"test"' -o "$TOP/root/virtbay-guest" "$ROOT"/hostif/swiotlb/guest/*.cc \
    >"$TOP/guest.log" 2>&1; then
    fail "the guest's virtbay-guest is built"
    sed 's/^/    /' "$TOP/guest.log"
    return
  fi
  (cd "$TOP/root" && printf 'init\nvirtbay-guest\n' | cpio -o -H newc --quiet) >"$TOP/initramfs.cpio"
  phase_pools
  phase_tiny
  phase_wrong
  phase_none
  WORK=$TOP
}
