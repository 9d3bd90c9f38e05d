# QEMU without KVM, a Debian kernel, vhost-user-fs-pci: the same bytes on both sides.
LIMIT=150
NEEDS="qemu-system-x86_64 cpio dpkg-deb depmod"

suite_run() {
  [ -x /bin/busybox ] || { skip "busybox is not installed (package busybox-static)"; return; }
  PATH=$PATH:/usr/sbin:/sbin
  debian_kernel || { skip "no Debian kernel could be had"; return; }
  debian_initramfs "$WORK/initramfs.cpio" <<'INIT'
mkdir -p /mnt/a /mnt/b
mount -t virtiofs a /mnt/a; result $? "mount of a"
mount -t virtiofs b /mnt/b; result $? "mount of b"
(cd /mnt/a && sha256sum -c sums) >/dev/null; result $? "checksums of the host's files"
cp /mnt/a/data /mnt/b/copy && sync && cmp /mnt/a/data /mnt/b/copy; result $? "copy from share to share"
mkdir /mnt/b/dir && for i in $(seq 200); do echo $i >/mnt/b/dir/$i; done
[ "$(ls /mnt/b/dir | wc -l)" = 200 ]; result $? "200 files"
umount /mnt/a && umount /mnt/b; result $? "umount"
echo "@@DONE 0"
poweroff -f
INIT
  suite_shares() { share a "$WORK/a"; share b "$WORK/b" cache '"always"'; }
  service_file
  head -c 30000000 /dev/urandom >"$WORK/a/data"
  head -c 12345 /dev/urandom >"$WORK/a/odd"
  (cd "$WORK/a" && sha256sum data odd >sums)
  service_start "$WORK" "$WORK/virtbay.toml" || { fail "virtbay starts"; return; }
  qemu_start qemu-system-x86_64 -machine q35,accel=tcg,memory-backend=mem -cpu max -m 256M -smp 2 \
    -object memory-backend-memfd,id=mem,size=256M,share=on \
    -chardev socket,id=ca,path="$WORK/a.sock" -device vhost-user-fs-pci,chardev=ca,tag=a \
    -chardev socket,id=cb,path="$WORK/b.sock" -device vhost-user-fs-pci,chardev=cb,tag=b,queue-size=1024 \
    -kernel "$KERNEL" -initrd "$WORK/initramfs.cpio" -append "console=ttyS0 quiet panic=-1"
  guest_run "$LIMIT"
  cmp -s "$WORK/a/data" "$WORK/b/copy"
  verdict $? "the host has the guest's copy"
  [ "$(cat "$WORK/b/dir/200")" = 200 ]
  verdict $? "the host has the guest's files"
  service_check
}
