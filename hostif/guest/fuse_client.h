// FuseClient: a typed, synchronous function per FUSE opcode over one FuseQueue, for tests and for
// whoever wants to use a virtiofs device without a kernel.
// A light handle; [queue]: used by the thread of its FuseQueue. Results carry the server's errno.
// Ints returned and FuseReply::error: 0; a positive errno from the server; or negative, trouble on
// this side: -EPROTO (malformed reply), -ETIMEDOUT, -ENOTCONN (the back-end has gone), -EMSGSIZE.
#ifndef VIRTBAY_HOSTIF_GUEST_FUSE_CLIENT_H_
#define VIRTBAY_HOSTIF_GUEST_FUSE_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hostif/guest/fuse_protocol.h"
#include "hostif/guest/fuse_queue.h"

namespace virtbay::guest {

template <typename T>
struct FuseReply {
  int error = 0;
  T value{};

  bool ok() const { return error == 0; }
};

// An entry of READDIR or READDIRPLUS; `entry` only from the latter (nodeid 0: not looked up).
struct FuseDirEntry {
  std::string name;
  uint64_t ino = 0;
  uint64_t next_offset = 0;
  uint32_t type = 0;
  fuse_entry_out entry{};
};

struct FuseCreated {
  fuse_entry_out entry;
  fuse_open_out open;
};

// What came back for a raw chain: bytes the device reported, and the writable part's contents.
struct FuseRawReply {
  int error = 0;  // of this side only
  uint32_t written = 0;
  std::vector<std::byte> bytes;
};

// The negotiated session, shared by the clients of a FuseSession.
struct FuseInit {
  fuse_init_out out{};
  uint64_t flags = 0;  // flags and flags2 that both sides have
};

class FuseClient {
 public:
  FuseClient(FuseQueue* queue, FuseInit* init) : queue_(queue), init_(init) {}

  // Offers `flags` (cut to the lower half when INIT_EXT is not among them).
  FuseReply<fuse_init_out> Init(uint64_t flags = kFuseLinuxInitFlags, uint32_t minor = 38,
                                uint32_t max_readahead = 1u << 20);
  int Destroy();

  FuseReply<fuse_entry_out> Lookup(uint64_t parent, std::string_view name);
  int Forget(uint64_t nodeid, uint64_t lookups);
  int BatchForget(std::span<const fuse_forget_one> items);
  FuseReply<fuse_attr_out> GetAttr(uint64_t nodeid);
  FuseReply<fuse_attr_out> GetAttrOfHandle(uint64_t nodeid, uint64_t fh);
  FuseReply<fuse_attr_out> SetAttr(uint64_t nodeid, const fuse_setattr_in& change);
  FuseReply<FuseStatxOut> Statx(uint64_t nodeid, const FuseStatxIn& ask);
  FuseReply<std::string> ReadLink(uint64_t nodeid);
  FuseReply<fuse_entry_out> Symlink(uint64_t parent, std::string_view name,
                                    std::string_view target);
  FuseReply<fuse_entry_out> Mknod(uint64_t parent, std::string_view name, uint32_t mode,
                                  uint32_t rdev = 0, uint32_t umask = 0);
  FuseReply<fuse_entry_out> Mkdir(uint64_t parent, std::string_view name, uint32_t mode,
                                  uint32_t umask = 0);
  int Unlink(uint64_t parent, std::string_view name);
  int Rmdir(uint64_t parent, std::string_view name);
  int Rename(uint64_t parent, std::string_view name, uint64_t new_parent,
             std::string_view new_name);
  int Rename2(uint64_t parent, std::string_view name, uint64_t new_parent,
              std::string_view new_name, uint32_t flags);
  FuseReply<fuse_entry_out> Link(uint64_t nodeid, uint64_t new_parent, std::string_view new_name);

  FuseReply<fuse_open_out> Open(uint64_t nodeid, uint32_t flags, uint32_t open_flags = 0);
  FuseReply<FuseCreated> Create(uint64_t parent, std::string_view name, uint32_t flags,
                                uint32_t mode, uint32_t umask = 0, uint32_t open_flags = 0);
  FuseReply<FuseCreated> Tmpfile(uint64_t parent, uint32_t flags, uint32_t mode,
                                 uint32_t umask = 0);
  // At most options().max_data bytes.
  FuseReply<std::vector<std::byte>> Read(uint64_t nodeid, uint64_t fh, uint64_t offset,
                                         uint32_t size, uint32_t file_flags = 0);
  // Bytes written.
  FuseReply<uint32_t> Write(uint64_t nodeid, uint64_t fh, uint64_t offset,
                            std::span<const std::byte> data, uint32_t write_flags = 0,
                            uint32_t file_flags = 0);
  int Flush(uint64_t nodeid, uint64_t fh, uint64_t lock_owner = 0);
  int Release(uint64_t nodeid, uint64_t fh, uint32_t release_flags = 0, uint64_t lock_owner = 0);
  int Fsync(uint64_t nodeid, uint64_t fh, bool data_only = false);
  int Fallocate(uint64_t nodeid, uint64_t fh, uint64_t offset, uint64_t length, uint32_t mode);
  FuseReply<uint64_t> Lseek(uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t whence);
  // Bytes copied.
  FuseReply<uint32_t> CopyFileRange(uint64_t nodeid_in, uint64_t fh_in, uint64_t offset_in,
                                    uint64_t nodeid_out, uint64_t fh_out, uint64_t offset_out,
                                    uint64_t length, uint64_t flags = 0);

  FuseReply<fuse_open_out> OpenDir(uint64_t nodeid, uint32_t flags = 0);
  FuseReply<std::vector<FuseDirEntry>> ReadDir(uint64_t nodeid, uint64_t fh, uint64_t offset,
                                               uint32_t size);
  FuseReply<std::vector<FuseDirEntry>> ReadDirPlus(uint64_t nodeid, uint64_t fh, uint64_t offset,
                                                   uint32_t size);
  int ReleaseDir(uint64_t nodeid, uint64_t fh);
  int FsyncDir(uint64_t nodeid, uint64_t fh, bool data_only = false);

  FuseReply<fuse_kstatfs> StatFs(uint64_t nodeid = kFuseRootId);
  int SyncFs(uint64_t nodeid = kFuseRootId);
  int Access(uint64_t nodeid, uint32_t mask);

  int SetXattr(uint64_t nodeid, std::string_view name, std::span<const std::byte> value,
               uint32_t flags = 0, uint32_t setxattr_flags = 0);
  // The value; with size 0 only its length is asked for, and `value` has that many zero bytes.
  FuseReply<std::vector<std::byte>> GetXattr(uint64_t nodeid, std::string_view name, uint32_t size);
  // NUL-separated names; size 0 as in GetXattr.
  FuseReply<std::vector<std::byte>> ListXattr(uint64_t nodeid, uint32_t size);
  int RemoveXattr(uint64_t nodeid, std::string_view name);

  // lk_flags: FUSE_LK_FLOCK for flock(2).
  FuseReply<fuse_file_lock> GetLk(uint64_t nodeid, uint64_t fh, uint64_t owner,
                                  const fuse_file_lock& lock, uint32_t lk_flags = 0);
  // `wait`: SETLKW, which blocks this call.
  int SetLk(uint64_t nodeid, uint64_t fh, uint64_t owner, const fuse_file_lock& lock, bool wait,
            uint32_t lk_flags = 0);
  // A SETLKW that is left in flight: nullptr when no slot is free or the ring is full. End it with
  // FinishLk.
  FuseSlot* StartLkw(uint64_t nodeid, uint64_t fh, uint64_t owner, const fuse_file_lock& lock,
                     uint32_t lk_flags = 0);
  int FinishLk(FuseSlot* slot);
  // Asks for the end of the request `unique` (FuseSlot::unique); usually sent on the hiprio queue.
  int Interrupt(uint64_t unique);

  // Any request: arguments (and a name behind them, unless empty), room for the reply; for opcodes
  // without a function here and for malformed arguments behind a good header.
  FuseReply<std::vector<std::byte>> Other(uint32_t opcode, uint64_t nodeid,
                                          std::span<const std::byte> arguments,
                                          uint32_t reply_capacity);
  // Any bytes as a chain: readable descriptors of `in_split` bytes (0: one), writable ones of
  // `out_split`. Request and reply together have to fit max_data.
  FuseRawReply Raw(std::span<const std::byte> request, uint32_t reply_capacity,
                   uint32_t in_split = 0, uint32_t out_split = 0);

  FuseQueue& queue() { return *queue_; }
  const FuseInit& init() const { return *init_; }

 private:
  class Call;
  FuseReply<std::vector<FuseDirEntry>> ReadEntries(uint32_t opcode, uint64_t nodeid, uint64_t fh,
                                                   uint64_t offset, uint32_t size);

  FuseQueue* queue_;
  FuseInit* init_;
};

// Parses the data of READDIR (plus false) or READDIRPLUS; -EPROTO in .error when it is malformed.
FuseReply<std::vector<FuseDirEntry>> ParseDirEntries(std::span<const std::byte> data, bool plus);

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_FUSE_CLIENT_H_
