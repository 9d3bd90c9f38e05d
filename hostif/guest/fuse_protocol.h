// The FUSE wire protocol as the client speaks it: <linux/fuse.h> (7.38 on Debian 12) and what newer
// kernels add, under names of our own so that a newer header does not clash.
// Constants and plain structs; [any].
#ifndef VIRTBAY_HOSTIF_GUEST_FUSE_PROTOCOL_H_
#define VIRTBAY_HOSTIF_GUEST_FUSE_PROTOCOL_H_

#include <linux/fuse.h>

#include <cstdint>

namespace virtbay::guest {

inline constexpr uint64_t kFuseRootId = 1;

inline constexpr uint32_t kFuseOpStatx = 52;            // 7.39
inline constexpr uint32_t kFuseOpCopyFileRange64 = 53;  // 7.45

// INIT flags beyond 7.38, as 64-bit values (the upper half travels in flags2).
inline constexpr uint64_t kFuseCreateSuppGroup = uint64_t{1} << 34;
inline constexpr uint64_t kFuseHasExpireOnly = uint64_t{1} << 35;
inline constexpr uint64_t kFuseDirectIoAllowMmap = uint64_t{1} << 36;
inline constexpr uint64_t kFusePassthrough = uint64_t{1} << 37;
inline constexpr uint64_t kFuseNoExportSupport = uint64_t{1} << 38;
inline constexpr uint64_t kFuseHasResend = uint64_t{1} << 39;
inline constexpr uint64_t kFuseAllowIdmap = uint64_t{1} << 40;

// OPEN reply flags beyond 7.38.
inline constexpr uint32_t kFopenNoFlush = 1u << 5;
inline constexpr uint32_t kFopenParallelDirectWrites = 1u << 6;

inline constexpr uint32_t kFuseExtGroups = 32;  // fuse_ext_header.type

struct FuseExtHeader {
  uint32_t size = 0;  // of the extension with this header, a multiple of 8
  uint32_t type = 0;
};

struct FuseSxTime {
  int64_t seconds = 0;
  uint32_t nanoseconds = 0;
  int32_t reserved = 0;
};

struct FuseStatx {
  uint32_t mask = 0;
  uint32_t blksize = 0;
  uint64_t attributes = 0;
  uint32_t nlink = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint16_t mode = 0;
  uint16_t spare0 = 0;
  uint64_t ino = 0;
  uint64_t size = 0;
  uint64_t blocks = 0;
  uint64_t attributes_mask = 0;
  FuseSxTime atime;
  FuseSxTime btime;
  FuseSxTime ctime;
  FuseSxTime mtime;
  uint32_t rdev_major = 0;
  uint32_t rdev_minor = 0;
  uint32_t dev_major = 0;
  uint32_t dev_minor = 0;
  uint64_t spare2[14] = {};
};
static_assert(sizeof(FuseStatx) == 256);

struct FuseStatxIn {
  uint32_t getattr_flags = 0;
  uint32_t reserved = 0;
  uint64_t fh = 0;
  uint32_t sx_flags = 0;  // AT_STATX_*
  uint32_t sx_mask = 0;   // STATX_*
};

struct FuseStatxOut {
  uint64_t attr_valid = 0;
  uint32_t attr_valid_nsec = 0;
  uint32_t flags = 0;
  uint64_t spare[2] = {};
  FuseStatx stat;
};

// virtio 1.3 5.11.4: the configuration space of a file system device.
struct VirtioFsConfig {
  char tag[36] = {};
  uint32_t num_request_queues = 0;
  uint32_t notify_buf_size = 0;
};

// What a current Linux kernel offers in INIT.
inline constexpr uint64_t kFuseLinuxInitFlags =
    FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT |
    FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_SPLICE_READ |
    FUSE_FLOCK_LOCKS | FUSE_HAS_IOCTL_DIR | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS |
    FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_WRITEBACK_CACHE | FUSE_NO_OPEN_SUPPORT |
    FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV | FUSE_POSIX_ACL | FUSE_ABORT_ERROR |
    FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_NO_OPENDIR_SUPPORT | FUSE_EXPLICIT_INVAL_DATA |
    FUSE_SUBMOUNTS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | FUSE_INIT_EXT |
    FUSE_SECURITY_CTX | kFuseCreateSuppGroup | kFuseHasExpireOnly | kFuseDirectIoAllowMmap |
    kFuseNoExportSupport | kFuseHasResend | kFuseAllowIdmap;

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_FUSE_PROTOCOL_H_
