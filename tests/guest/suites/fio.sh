# fio verifies what it wrote: buffered, O_DIRECT, mapped, many jobs.
LIMIT=240
NEEDS=fio
suite_shares() {
  share a "$WORK/a" allow-direct-io true
  share b "$WORK/b" writeback true
}
guest() {
  job() {
    local dir=$1
    shift
    fio --name=job --directory="$dir" --size=16m --verify=crc32c --verify_fatal=1 \
      --verify_state_save=0 --randrepeat=1 --fallocate=none --end_fsync=1 --output-format=terse \
      --do_verify=1 "$@" && rm -f "$dir"/job*
  }
  check "random writes, 4 KiB" job $M/a --rw=randwrite --bs=4k --ioengine=psync
  check "random writes, odd sizes" job $M/a --rw=randwrite --bsrange=512-70k --bs_unaligned=1 --ioengine=psync
  check "sequential writes, 1 MiB" job $M/a --rw=write --bs=1m --ioengine=psync
  check "O_DIRECT, 4 KiB, depth 16" job $M/a --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16
  check "O_DIRECT, 256 KiB, depth 8" job $M/a --rw=randwrite --bs=256k --direct=1 --ioengine=libaio --iodepth=8
  check "mapped" job $M/a --rw=randwrite --bs=4k --ioengine=mmap
  check "four jobs" job $M/a --rw=randrw --bs=16k --ioengine=psync --numjobs=4 --size=4m
  check "io_uring" job $M/a --rw=randwrite --bs=8k --ioengine=io_uring --iodepth=8
  check "write-back cache" job $M/b --rw=randwrite --bs=4k --ioengine=psync
  check "write-back cache, mapped" job $M/b --rw=randwrite --bs=4k --ioengine=mmap
}
