// The form of a virtiofs device's state, version 1 (virtbay.device.state): sections of records of a
// fixed size in the byte order of the machine, and beside them descriptors by role.
// Nothing here is shared with what the device works with: this form stays as it is, whatever
// becomes of that. A section that is not known is passed over, so a later version may add some;
// what it adds to a record makes it a new version. Plain types; every function of this folder is
// [control].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_STATE_FORMAT_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_STATE_FORMAT_H_

#include <cstdint>

namespace virtbay::virtiofs::state {

inline constexpr uint32_t kVersion = 1;

// Tags of sections. Each is there once, if without a record in it.
inline constexpr uint32_t kSession = 1;      // one Session
inline constexpr uint32_t kShares = 2;       // Share, each with its texts behind it
inline constexpr uint32_t kNumbers = 3;      // Number
inline constexpr uint32_t kPlaces = 4;       // Place
inline constexpr uint32_t kInodes = 5;       // Inode
inline constexpr uint32_t kTexts = 6;        // of the inodes, one behind the other
inline constexpr uint32_t kHandles = 7;      // Handle
inline constexpr uint32_t kStreams = 8;      // Stream, each with its entries behind it
inline constexpr uint32_t kLockOwners = 9;   // LockOwner
inline constexpr uint32_t kLockRanges = 10;  // LockRange, of the owners in their order
inline constexpr uint32_t kHandedBack = 11;  // HandedBack

// Roles of descriptors, and in which order those of a role are.
inline constexpr uint32_t kShareFd = 1;   // a share's directory: one of each Share
inline constexpr uint32_t kInodeFd = 2;   // O_PATH: one of each Inode that has kInodeHasFd
inline constexpr uint32_t kHandleFd = 3;  // an open file or directory: one of each Handle
inline constexpr uint32_t kLockFd = 4;    // by which locks are held: one of each LockOwner

inline constexpr uint32_t kAggregate = 1;  // Session.flags: the device carries many shares
inline constexpr uint32_t kReady = 2;      // there is a FUSE session

struct Session {
  uint64_t init_flags;  // FUSE_* of INIT that both sides have
  uint32_t flags;
  uint32_t inode_generation;   // of indices of node ids that are not in use, the highest
  uint32_t handle_generation;  // the same of file handles
  // Of an aggregate: what comes next.
  uint32_t next_share;
  uint32_t next_number;
  uint32_t reserved;
  uint64_t next_cookie;
  uint64_t changed_ns;  // of the root's listing
};
static_assert(sizeof(Session) == 48);

inline constexpr uint32_t kShareRemoved = 1;
inline constexpr uint32_t kShareNoNowaitWrites = 2;
inline constexpr uint32_t kShareNoNowaitReads = 4;

// The first is the only share, or the root of an aggregate: id 0, no name, no options. Behind it
// come its name, its path, and its options: keys and values with a NUL behind each.
struct Share {
  uint64_t cookie;
  uint32_t id;
  uint32_t flags;
  uint32_t name_size;
  uint32_t path_size;
  uint32_t options_size;
  uint32_t reserved;
};
static_assert(sizeof(Share) == 32);

// Numbers of files of a share with those bits above stand under that prefix.
struct Number {
  uint64_t dev;
  uint64_t high;
  uint32_t share;  // its id
  uint32_t prefix;
};
static_assert(sizeof(Number) == 24);

// What many inodes have in common.
struct Place {
  uint64_t dev;
  uint64_t mount;
  uint32_t share;  // index in kShares
  uint32_t reserved;
};
static_assert(sizeof(Place) == 24);

inline constexpr uint8_t kInodeHashed = 1;     // a lookup of the same file of the host finds it
inline constexpr uint8_t kInodeKeepsFd = 2;    // its descriptor or handle is the only way to it
inline constexpr uint8_t kInodeHasFd = 4;      // it comes with one
inline constexpr uint8_t kInodeShareRoot = 8;  // of an aggregate: it has the share's

// In ascending order of the index in `node`; the root (1) is not among them. Its text is the name
// and, if `handle_size` is not 0, 4 bytes with the type of the file handle and the handle.
struct Inode {
  uint64_t node;  // generation << 32 | index + 1
  uint64_t lookups;
  uint64_t ino;
  uint64_t btime_ns;
  uint32_t parent;  // index + 1; 0: it has no name
  uint32_t place;   // index in kPlaces
  uint32_t nlink;
  uint16_t handle_size;
  uint8_t name_size;
  uint8_t type;  // S_IFMT >> 12
  uint8_t flags;
  uint8_t reserved[7];
};
static_assert(sizeof(Inode) == 56);

inline constexpr uint32_t kHandleReadable = 1;
inline constexpr uint32_t kHandleWritable = 2;
inline constexpr uint32_t kHandleDirect = 4;    // O_DIRECT
inline constexpr uint32_t kHandleNoNowait = 8;  // writes with RWF_NOWAIT are of no use
inline constexpr uint32_t kHandleFlocked = 16;  // flock(2) was taken at some time

struct Handle {
  uint64_t fh;     // generation << 32 | index + 1
  uint32_t inode;  // index + 1
  uint32_t flags;
};
static_assert(sizeof(Handle) == 16);

inline constexpr uint32_t kStreamFresh = 1;    // nothing was read yet
inline constexpr uint32_t kStreamRestart = 2;  // what was read ahead is not here

// Of a directory that is being read. Behind it come `size` bytes as getdents64 gave them, and as
// many more as make them a multiple of 8.
struct Stream {
  uint64_t fh;
  uint64_t offset;  // of the next entry, for the guest
  uint32_t at;      // where among the bytes it is
  uint32_t size;
  uint32_t flags;
  uint32_t reserved;
};
static_assert(sizeof(Stream) == 32);

inline constexpr uint32_t kLockReadable = 1;
inline constexpr uint32_t kLockWritable = 2;

// In ascending order of `inode` and then `owner`.
struct LockOwner {
  uint64_t owner;
  uint64_t fh;         // the handle that it was made for; 0: it is open no more
  uint64_t shared_fh;  // the handle whose open file description it uses; 0: it has its own
  uint32_t inode;      // index + 1
  uint32_t pid;
  uint32_t flags;
  uint32_t ranges;  // how many of kLockRanges
};
static_assert(sizeof(LockOwner) == 40);

// In ascending order, without a byte in common.
struct LockRange {
  uint64_t start;
  uint64_t end;    // the last byte; at most INT64_MAX
  uint64_t write;  // 1: a write lock
};
static_assert(sizeof(LockRange) == 24);

// A SETLKW request that waited and will be presented again.
struct HandedBack {
  uint64_t unique;
  uint64_t interrupted;  // 1: meanwhile
};
static_assert(sizeof(HandedBack) == 16);

}  // namespace virtbay::virtiofs::state

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_STATE_FORMAT_H_
