#!/bin/busybox sh
# /init of the user-mode Linux guest: shows the host's file system read-only, mounts the shares at
# /run/mnt/TAG, runs job.sh of the job directory, and ends the machine.
# From the command line: vb_job=DIR (of the host), vb_tags=TAG,TAG.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
for word in $(/bin/busybox cat /proc/cmdline); do
  case $word in
    vb_job=*) job=${word#vb_job=} ;;
    vb_tags=*) tags=${word#vb_tags=} ;;
  esac
done
PATH=/bin
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
stty -echo -onlcr 2>/dev/null
insmod /lib/fuse.ko
insmod /lib/virtiofs.ko
mount -t hostfs host /root -o ro || echo "@@FAIL boot: no hostfs"
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/shm /root/dev/pts
ln -sf /proc/self/fd /root/dev/fd
ln -sf /proc/self/fd/0 /root/dev/stdin
ln -sf /proc/self/fd/1 /root/dev/stdout
ln -sf /proc/self/fd/2 /root/dev/stderr
mount -t tmpfs shm /root/dev/shm
mount -t devpts pts /root/dev/pts
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mkdir /job
mount -t tmpfs job /job
# Read before anything hides the place that it lies in.
cp -a "/root$job/." /job/
mount -t tmpfs run /root/run
mkdir -p /root/run/job /root/run/home /root/run/mnt
mount --bind /job /root/run/job
mount -t tmpfs tmp /root/tmp
chmod 1777 /root/tmp
ip link set lo up 2>/dev/null
status=0
for tag in $(echo "$tags" | tr ',' ' '); do
  mkdir -p "/root/run/mnt/$tag"
  if ! mount -t virtiofs "$tag" "/root/run/mnt/$tag"; then
    echo "@@FAIL mount of $tag"
    status=1
  fi
done
if [ $status = 0 ]; then
  chroot /root /usr/bin/env -i HOME=/run/home TMPDIR=/tmp LANG=C TERM=dumb \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games \
    /bin/bash /run/job/job.sh </dev/console
  status=$?
fi
for tag in $(echo "$tags" | tr ',' ' '); do
  umount "/root/run/mnt/$tag" 2>/dev/null || umount -l "/root/run/mnt/$tag" 2>/dev/null
done
sync
echo "@@DONE $status"
poweroff -f
