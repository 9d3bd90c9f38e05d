# stress-ng's file stressors, each with verification where it has one.
LIMIT=600
NEEDS=stress-ng
suite_shares() { share a "$WORK/a" xattr true; }
guest() {
  mkdir -p $M/a/t
  cd $M/a/t || return
  # The shared buffer is as large as that cache of the host; the third may exceed the guest.
  stress() { stress-ng --cache-level 1 --temp-path $M/a/t --verify --timeout 6 "$@"; }
  check "access" stress --access 1 --access-ops 300
  check "chmod" stress --chmod 2 --chmod-ops 300
  check "copy-file" stress --copy-file 1 --copy-file-ops 10
  check "dentry" stress --dentry 1 --dentry-ops 2000
  check "dir" stress --dir 1 --dir-ops 300
  check "dirdeep" stress --dirdeep 1 --dirdeep-ops 200 --dirdeep-dirs 2
  check "dup" stress --dup 1 --dup-ops 20
  check "fallocate" stress --fallocate 1 --fallocate-ops 30 --fallocate-bytes 8m
  check "fcntl" stress --fcntl 1 --fcntl-ops 300
  check "filename" stress --filename 1 --filename-ops 500
  check "flock" stress --flock 2 --flock-ops 500
  check "fsize" stress --fsize 1 --fsize-ops 20
  check "hdd" stress --hdd 1 --hdd-ops 200 --hdd-bytes 8m
  check "iomix" stress --iomix 1 --iomix-ops 200 --iomix-bytes 8m
  check "link" stress --link 1 --link-ops 100
  check "locka" stress --locka 2 --locka-ops 300
  check "lockf" stress --lockf 2 --lockf-nonblock --lockf-ops 300
  check "lockofd" stress --lockofd 2 --lockofd-ops 300
  check "mknod" stress --mknod 1 --mknod-ops 100
  check "open" stress --open 1 --open-ops 1000
  check "readahead" stress --readahead 1 --readahead-ops 200 --readahead-bytes 8m
  check "rename" stress --rename 2 --rename-ops 500
  check "seek" stress --seek 1 --seek-ops 500 --seek-size 4m
  check "symlink" stress --symlink 1 --symlink-ops 100
  check "sync-file" stress --sync-file 1 --sync-file-ops 30 --sync-file-bytes 2m
  check "touch" stress --touch 2 --touch-ops 300
  check "utime" stress --utime 1 --utime-ops 500
  check "xattr" stress --xattr 1 --xattr-ops 20
}
