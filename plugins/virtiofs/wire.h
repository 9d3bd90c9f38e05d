// The FUSE wire format: <linux/fuse.h> of 7.38 plus what later protocol minors added.
// Constants and plain structs only; usable on every thread.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_WIRE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_WIRE_H_

#include <linux/fuse.h>

#include <cstdint>

namespace virtbay::virtiofs {

inline constexpr uint32_t kFuseMajor = 7;
inline constexpr uint32_t kFuseMinMinor = 27;
inline constexpr uint32_t kFuseMaxMinor = 39;

// Opcodes newer than 7.38.
inline constexpr uint32_t kOpStatx = 52;
inline constexpr uint32_t kOpCopyFileRange64 = 53;
inline constexpr uint32_t kOpcodeCount = 54;

// FUSE_INIT flags newer than 7.38 (bits of flags | flags2 << 32).
inline constexpr uint64_t kInitCreateSuppGroup = 1ull << 34;
inline constexpr uint64_t kInitDirectIoAllowMmap = 1ull << 36;
inline constexpr uint64_t kInitNoExportSupport = 1ull << 38;
inline constexpr uint64_t kInitAllowIdmap = 1ull << 40;

// Extension type of fuse_ext_header: supplementary groups (7.38 protocol, newer header).
inline constexpr uint32_t kExtGroups = 32;

// uid or gid of a request that carries none (an idmapped mount, 7.41).
inline constexpr uint32_t kInvalidId = 0xffffffffu;

struct SuppGroups {
  uint32_t nr_groups;
  // followed by nr_groups of uint32_t
};

struct SxTime {
  int64_t tv_sec;
  uint32_t tv_nsec;
  int32_t reserved;
};

struct FuseStatx {
  uint32_t mask;
  uint32_t blksize;
  uint64_t attributes;
  uint32_t nlink;
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint16_t spare0[1];
  uint64_t ino;
  uint64_t size;
  uint64_t blocks;
  uint64_t attributes_mask;
  SxTime atime;
  SxTime btime;
  SxTime ctime;
  SxTime mtime;
  uint32_t rdev_major;
  uint32_t rdev_minor;
  uint32_t dev_major;
  uint32_t dev_minor;
  uint64_t spare2[14];
};
static_assert(sizeof(FuseStatx) == 256);

struct StatxIn {
  uint32_t getattr_flags;
  uint32_t reserved;
  uint64_t fh;
  uint32_t sx_flags;
  uint32_t sx_mask;
};
static_assert(sizeof(StatxIn) == 24);

struct StatxOut {
  uint64_t attr_valid;
  uint32_t attr_valid_nsec;
  uint32_t flags;
  uint64_t spare[2];
  FuseStatx stat;
};
static_assert(sizeof(StatxOut) == 288);

struct CopyFileRangeOut {
  uint64_t bytes_copied;
};

struct CreateOut {
  fuse_entry_out entry;
  fuse_open_out open;
};
static_assert(sizeof(CreateOut) == 144);

inline constexpr uint32_t kInHeader = sizeof(fuse_in_header);
inline constexpr uint32_t kOutHeader = sizeof(fuse_out_header);
static_assert(kInHeader == 40 && kOutHeader == 16);

// Where the data of a WRITE request begins.
inline constexpr uint32_t kWriteDataOffset = kInHeader + sizeof(fuse_write_in);

inline constexpr uint32_t kNameMax = 255;
inline constexpr uint32_t kXattrSizeMax = 65536;

// The 32-bit device number of fuse_attr.rdev and fuse_mknod_in.rdev.
inline constexpr uint32_t EncodeDev(uint32_t major, uint32_t minor) {
  return (minor & 0xffu) | (major << 8) | ((minor & ~0xffu) << 12);
}
inline constexpr uint32_t DecodeMajor(uint32_t rdev) { return (rdev & 0xfff00u) >> 8; }
inline constexpr uint32_t DecodeMinor(uint32_t rdev) {
  return (rdev & 0xffu) | ((rdev >> 12) & 0xfff00u);
}

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_WIRE_H_
