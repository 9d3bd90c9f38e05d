# x86-64, a stock Debian kernel with swiotlb=force, vhost-user-fs-pci: every buffer goes through the
# kernel's one pool, rings lie elsewhere. The devices can reach the pool and their rings only.
LIMIT=200
PATIENCE=5
# Slots of 2 KiB. Without randomisation the kernel puts its pool at the same place in every boot.
PARAMETERS="console=ttyS0 quiet panic=-1 nokaslr swiotlb=16384,force"

swiotlb_boot() {
  local device devices=()
  for device in a b c; do
    devices+=(-chardev "socket,id=$device,path=$WORK/$device.sock" -device
      "vhost-user-fs-pci,chardev=$device,tag=$device,queue-size=1024,iommu_platform=on")
  done
  # The kernel says where its pool is if there may be memory above 4 GiB; slots for it are enough.
  qemu_start qemu-system-x86_64 -machine q35,accel=tcg -cpu max -m 512M,slots=1,maxmem=8G -smp 2 \
    -object memory-backend-memfd,id=mem,size=512M,share=on -numa node,memdev=mem "${devices[@]}" \
    -kernel "$KERNEL" -initrd "$WORK/initramfs.cpio" -append "$PARAMETERS vb_do=$1"
  guest_run "$LIMIT"
}

suite_run() {
  local begin end size
  amd64_with qemu-system-x86_64 busybox cpio dpkg-deb depmod python3 || return
  debian_kernel || { skip "no Debian kernel could be had"; return; }
  debian_initramfs "$WORK/initramfs.cpio" <<INIT
PATIENCE=$PATIENCE
$(cat <<'BODY'
look() { echo "@@HOST look"; read -r answer </dev/console; [ "$answer" = ok ]; }
echo "@@LOG $(dmesg | grep 'software IO TLB: mapped')"
mkdir -p /mnt/a /mnt/b /mnt/c
mount -t debugfs debug /sys/kernel/debug
REPORT=$(virtbay-guest)
echo "$REPORT" | grep '"swiotlb":"none","reason":.*"global_pool":{"slots":16384,"slots_used":[0-9]' >/dev/null
result $? "virtbay-guest finds the one pool"
if grep -q vb_do=find /proc/cmdline; then
  mount -t virtiofs a /mnt/a && (cd /mnt/a && sha256sum -c sums) >/dev/null
  result $? "a device that is not confined works"
  echo "@@DONE 0"
  poweroff -n -f
fi
mount -t virtiofs a /mnt/a; result $? "mount of a"
mount -t virtiofs b /mnt/b; result $? "mount of b"
# Nobody serves c; from here on a sync of everything would wait for it.
(mount -t virtiofs c /mnt/c && ls /mnt/c && touch /answered) >/dev/null 2>&1 &
(cd /mnt/a && sha256sum -c sums) >/dev/null; result $? "checksums of the host's files"
dd if=/mnt/a/data of=/mnt/b/copy bs=64k conv=fsync 2>/dev/null && cmp /mnt/a/data /mnt/b/copy; result $? "copy from share to share"
echo 3 >/proc/sys/vm/drop_caches
dd if=/mnt/a/data of=/mnt/b/large bs=1M conv=fsync 2>/dev/null; result $? "1 MiB a call"
dd if=/mnt/a/data of=/mnt/b/direct bs=1M iflag=direct oflag=direct 2>/dev/null
result $? "1 MiB a call, without the cache"
mkdir /mnt/b/dir && for i in $(seq 200); do echo $i >/mnt/b/dir/$i; done
[ "$(ls /mnt/b/dir | wc -l)" = 200 ]; result $? "200 files"
sleep $PATIENCE
[ ! -e /answered ]; result $? "nothing answers from c"
look; result $? "the host's side"
umount /mnt/a && umount /mnt/b; result $? "umount"
echo "@@DONE 0"
poweroff -n -f
BODY
)
INIT
  # One boot to find the pool, one to use it.
  suite_shares() {
    local tag
    for tag in a b c; do share $tag "$WORK/$tag" .access-platform true; done
  }
  service_file
  head -c 30000000 /dev/urandom >"$WORK/a/data"
  head -c 12345 /dev/urandom >"$WORK/a/odd"
  (cd "$WORK/a" && sha256sum data odd >sums)
  service_start "$WORK" "$WORK/virtbay.toml" || { fail "virtbay starts"; return; }
  swiotlb_boot find
  service_check
  read -r begin end < <(sed -n \
    's/^@@LOG .*software IO TLB: mapped \[mem \(0x[0-9a-f]*\)-\(0x[0-9a-f]*\)\].*/\1 \2/p' \
    "$WORK/console.log")
  [ -n "${end:-}" ]
  verdict $? "the kernel tells where its pool is"
  [ -n "${end:-}" ] || return
  size=$((end - begin))
  cp "$WORK/console.log" "$WORK/console-find.log"
  : >"$WORK/console.log"

  suite_shares() {
    share a "$WORK/a" .swiotlb "\"$begin,$size,all\""
    share b "$WORK/b" .swiotlb "\"$begin,$size,all\"" cache '"always"'
    share c "$WORK/c" .swiotlb "\"$begin,$size,all\"" .rings '"pool"'
  }
  service_file
  service_start "$WORK" "$WORK/virtbay.toml" || { fail "virtbay starts with the pool"; return; }
  swiotlb_boot work
  grep -q "^@@LOG .*mapped \[mem $begin-$end\]" "$WORK/console.log"
  verdict $? "the pool is where it was"
  backend_check "a: buffers lie in the pool, rings outside" served "$WORK/a.json" "$begin" $size outside
  backend_check "b: buffers lie in the pool, rings outside" served "$WORK/b.json" "$begin" $size outside
  backend_check "c: rings held to the pool do not start" refused "$WORK/c.json"
  backend_check "the pool and the rings are all that is mapped" mapped "$WORK/maps" $((3 * size)) 262144
  for copy in copy large direct; do
    cmp "$WORK/a/data" "$WORK/b/$copy"
    verdict $? "the host has the guest's $copy"
  done
  [ "$(cat "$WORK/b/dir/200")" = 200 ]
  verdict $? "the host has the guest's files"
  service_check
}
