#include "hostif/guest/fuse_client.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace virtbay::guest {
namespace {

int FromStatus(const absl::Status& status) {
  if (status.ok()) return 0;
  if (absl::IsDeadlineExceeded(status)) return -ETIMEDOUT;
  if (absl::IsUnavailable(status)) return -ENOTCONN;
  if (absl::IsInvalidArgument(status)) return -EMSGSIZE;
  if (absl::IsResourceExhausted(status)) return -EBUSY;
  return -EIO;
}

}  // namespace

// One synchronous request: a slot for its lifetime, and the ways to run it.
class FuseClient::Call {
 public:
  Call(FuseQueue* queue, uint32_t opcode, uint64_t nodeid)
      : queue_(queue), slot_(queue->Acquire()) {
    if (slot_ != nullptr) slot_->Begin(opcode, nodeid);
  }
  ~Call() { queue_->Release(slot_); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  template <typename T>
  Call& Put(const T& value) {
    if (slot_ != nullptr) slot_->Put(value);
    return *this;
  }
  Call& PutBytes(std::span<const std::byte> bytes) {
    if (slot_ != nullptr) slot_->PutBytes(bytes);
    return *this;
  }
  Call& Name(std::string_view name) {
    if (slot_ != nullptr) slot_->PutName(name);
    return *this;
  }
  Call& Groups() {
    if (slot_ != nullptr) slot_->PutGroups();
    return *this;
  }
  // Sends bytes as data pages; cut to what a slot holds so that Submit refuses the rest.
  Call& Data(std::span<const std::byte> data) {
    if (slot_ == nullptr) return *this;
    const auto area = slot_->data();
    if (!data.empty()) std::memcpy(area.data(), data.data(), std::min(area.size(), data.size()));
    slot_->SendData(static_cast<uint32_t>(std::min<size_t>(data.size(), UINT32_MAX)));
    return *this;
  }

  int Run(uint32_t args = 0, uint32_t data = 0) {
    if (slot_ == nullptr) return -EBUSY;
    slot_->Expect(args, data);
    return Finish();
  }
  int RunWithoutReply() {
    if (slot_ == nullptr) return -EBUSY;
    slot_->NoReply();
    return Finish();
  }
  template <typename T>
  FuseReply<T> RunFor() {
    FuseReply<T> reply;
    reply.error = Run(sizeof(T));
    if (reply.error == 0 && !slot_->Get(&reply.value)) reply.error = -EPROTO;
    return reply;
  }
  FuseReply<std::vector<std::byte>> RunForData(uint32_t size) {
    FuseReply<std::vector<std::byte>> reply;
    reply.error = Run(0, size);
    if (reply.error != 0) return reply;
    const auto data = slot_->reply_data();
    reply.value.assign(data.begin(), data.end());
    return reply;
  }

  FuseSlot* slot() { return slot_; }

 private:
  int Finish() {
    const int trouble = FromStatus(queue_->Call(slot_));
    return trouble != 0 ? trouble : slot_->error();
  }

  FuseQueue* queue_;
  FuseSlot* slot_;
};

FuseReply<fuse_init_out> FuseClient::Init(uint64_t flags, uint32_t minor, uint32_t max_readahead) {
  fuse_init_in in{};
  in.major = FUSE_KERNEL_VERSION;
  in.minor = minor;
  in.max_readahead = max_readahead;
  in.flags = static_cast<uint32_t>(flags);
  if ((flags & FUSE_INIT_EXT) != 0) in.flags2 = static_cast<uint32_t>(flags >> 32);
  Call call(queue_, FUSE_INIT, 0);
  const FuseReply<fuse_init_out> reply = call.Put(in).RunFor<fuse_init_out>();
  if (reply.ok()) {
    init_->out = reply.value;
    init_->flags = reply.value.flags;
    if ((reply.value.flags & FUSE_INIT_EXT) != 0) {
      init_->flags |= uint64_t{reply.value.flags2} << 32;
    }
    init_->flags &= flags;
  }
  return reply;
}

int FuseClient::Destroy() { return Call(queue_, FUSE_DESTROY, 0).Run(); }

FuseReply<fuse_entry_out> FuseClient::Lookup(uint64_t parent, std::string_view name) {
  return Call(queue_, FUSE_LOOKUP, parent).Name(name).RunFor<fuse_entry_out>();
}

int FuseClient::Forget(uint64_t nodeid, uint64_t lookups) {
  return Call(queue_, FUSE_FORGET, nodeid)
      .Put(fuse_forget_in{.nlookup = lookups})
      .RunWithoutReply();
}

int FuseClient::BatchForget(std::span<const fuse_forget_one> items) {
  return Call(queue_, FUSE_BATCH_FORGET, 0)
      .Put(fuse_batch_forget_in{.count = static_cast<uint32_t>(items.size()), .dummy = 0})
      .PutBytes(std::as_bytes(items))
      .RunWithoutReply();
}

FuseReply<fuse_attr_out> FuseClient::GetAttr(uint64_t nodeid) {
  return Call(queue_, FUSE_GETATTR, nodeid).Put(fuse_getattr_in{}).RunFor<fuse_attr_out>();
}

FuseReply<fuse_attr_out> FuseClient::GetAttrOfHandle(uint64_t nodeid, uint64_t fh) {
  return Call(queue_, FUSE_GETATTR, nodeid)
      .Put(fuse_getattr_in{.getattr_flags = FUSE_GETATTR_FH, .dummy = 0, .fh = fh})
      .RunFor<fuse_attr_out>();
}

FuseReply<fuse_attr_out> FuseClient::SetAttr(uint64_t nodeid, const fuse_setattr_in& change) {
  return Call(queue_, FUSE_SETATTR, nodeid).Put(change).RunFor<fuse_attr_out>();
}

FuseReply<FuseStatxOut> FuseClient::Statx(uint64_t nodeid, const FuseStatxIn& ask) {
  return Call(queue_, kFuseOpStatx, nodeid).Put(ask).RunFor<FuseStatxOut>();
}

FuseReply<std::string> FuseClient::ReadLink(uint64_t nodeid) {
  const auto data = Call(queue_, FUSE_READLINK, nodeid).RunForData(4096);
  FuseReply<std::string> reply;
  reply.error = data.error;
  reply.value.assign(reinterpret_cast<const char*>(data.value.data()), data.value.size());
  return reply;
}

FuseReply<fuse_entry_out> FuseClient::Symlink(uint64_t parent, std::string_view name,
                                              std::string_view target) {
  return Call(queue_, FUSE_SYMLINK, parent)
      .Name(name)
      .Name(target)
      .Groups()
      .RunFor<fuse_entry_out>();
}

FuseReply<fuse_entry_out> FuseClient::Mknod(uint64_t parent, std::string_view name, uint32_t mode,
                                            uint32_t rdev, uint32_t umask) {
  return Call(queue_, FUSE_MKNOD, parent)
      .Put(fuse_mknod_in{.mode = mode, .rdev = rdev, .umask = umask, .padding = 0})
      .Name(name)
      .Groups()
      .RunFor<fuse_entry_out>();
}

FuseReply<fuse_entry_out> FuseClient::Mkdir(uint64_t parent, std::string_view name, uint32_t mode,
                                            uint32_t umask) {
  return Call(queue_, FUSE_MKDIR, parent)
      .Put(fuse_mkdir_in{.mode = mode, .umask = umask})
      .Name(name)
      .Groups()
      .RunFor<fuse_entry_out>();
}

int FuseClient::Unlink(uint64_t parent, std::string_view name) {
  return Call(queue_, FUSE_UNLINK, parent).Name(name).Run();
}

int FuseClient::Rmdir(uint64_t parent, std::string_view name) {
  return Call(queue_, FUSE_RMDIR, parent).Name(name).Run();
}

int FuseClient::Rename(uint64_t parent, std::string_view name, uint64_t new_parent,
                       std::string_view new_name) {
  return Call(queue_, FUSE_RENAME, parent)
      .Put(fuse_rename_in{.newdir = new_parent})
      .Name(name)
      .Name(new_name)
      .Run();
}

int FuseClient::Rename2(uint64_t parent, std::string_view name, uint64_t new_parent,
                        std::string_view new_name, uint32_t flags) {
  return Call(queue_, FUSE_RENAME2, parent)
      .Put(fuse_rename2_in{.newdir = new_parent, .flags = flags, .padding = 0})
      .Name(name)
      .Name(new_name)
      .Run();
}

FuseReply<fuse_entry_out> FuseClient::Link(uint64_t nodeid, uint64_t new_parent,
                                           std::string_view new_name) {
  return Call(queue_, FUSE_LINK, new_parent)
      .Put(fuse_link_in{.oldnodeid = nodeid})
      .Name(new_name)
      .RunFor<fuse_entry_out>();
}

FuseReply<fuse_open_out> FuseClient::Open(uint64_t nodeid, uint32_t flags, uint32_t open_flags) {
  return Call(queue_, FUSE_OPEN, nodeid)
      .Put(fuse_open_in{.flags = flags, .open_flags = open_flags})
      .RunFor<fuse_open_out>();
}

FuseReply<FuseCreated> FuseClient::Create(uint64_t parent, std::string_view name, uint32_t flags,
                                          uint32_t mode, uint32_t umask, uint32_t open_flags) {
  return Call(queue_, FUSE_CREATE, parent)
      .Put(fuse_create_in{
          .flags = flags | O_CREAT, .mode = mode, .umask = umask, .open_flags = open_flags})
      .Name(name)
      .Groups()
      .RunFor<FuseCreated>();
}

FuseReply<FuseCreated> FuseClient::Tmpfile(uint64_t parent, uint32_t flags, uint32_t mode,
                                           uint32_t umask) {
  // The kernel sends the dentry's name, which has no meaning for a file without one.
  return Call(queue_, FUSE_TMPFILE, parent)
      .Put(fuse_create_in{.flags = flags, .mode = mode, .umask = umask, .open_flags = 0})
      .Name("/")
      .Groups()
      .RunFor<FuseCreated>();
}

FuseReply<std::vector<std::byte>> FuseClient::Read(uint64_t nodeid, uint64_t fh, uint64_t offset,
                                                   uint32_t size, uint32_t file_flags) {
  return Call(queue_, FUSE_READ, nodeid)
      .Put(fuse_read_in{.fh = fh,
                        .offset = offset,
                        .size = size,
                        .read_flags = 0,
                        .lock_owner = 0,
                        .flags = file_flags,
                        .padding = 0})
      .RunForData(size);
}

FuseReply<uint32_t> FuseClient::Write(uint64_t nodeid, uint64_t fh, uint64_t offset,
                                      std::span<const std::byte> data, uint32_t write_flags,
                                      uint32_t file_flags) {
  const auto reply = Call(queue_, FUSE_WRITE, nodeid)
                         .Put(fuse_write_in{.fh = fh,
                                            .offset = offset,
                                            .size = static_cast<uint32_t>(data.size()),
                                            .write_flags = write_flags,
                                            .lock_owner = 0,
                                            .flags = file_flags,
                                            .padding = 0})
                         .Data(data)
                         .RunFor<fuse_write_out>();
  return {reply.error, reply.value.size};
}

int FuseClient::Flush(uint64_t nodeid, uint64_t fh, uint64_t lock_owner) {
  return Call(queue_, FUSE_FLUSH, nodeid)
      .Put(fuse_flush_in{.fh = fh, .unused = 0, .padding = 0, .lock_owner = lock_owner})
      .Run();
}

int FuseClient::Release(uint64_t nodeid, uint64_t fh, uint32_t release_flags, uint64_t lock_owner) {
  return Call(queue_, FUSE_RELEASE, nodeid)
      .Put(fuse_release_in{
          .fh = fh, .flags = 0, .release_flags = release_flags, .lock_owner = lock_owner})
      .Run();
}

int FuseClient::Fsync(uint64_t nodeid, uint64_t fh, bool data_only) {
  return Call(queue_, FUSE_FSYNC, nodeid)
      .Put(fuse_fsync_in{
          .fh = fh, .fsync_flags = data_only ? FUSE_FSYNC_FDATASYNC : 0u, .padding = 0})
      .Run();
}

int FuseClient::Fallocate(uint64_t nodeid, uint64_t fh, uint64_t offset, uint64_t length,
                          uint32_t mode) {
  return Call(queue_, FUSE_FALLOCATE, nodeid)
      .Put(fuse_fallocate_in{
          .fh = fh, .offset = offset, .length = length, .mode = mode, .padding = 0})
      .Run();
}

FuseReply<uint64_t> FuseClient::Lseek(uint64_t nodeid, uint64_t fh, uint64_t offset,
                                      uint32_t whence) {
  const auto reply =
      Call(queue_, FUSE_LSEEK, nodeid)
          .Put(fuse_lseek_in{.fh = fh, .offset = offset, .whence = whence, .padding = 0})
          .RunFor<fuse_lseek_out>();
  return {reply.error, reply.value.offset};
}

FuseReply<uint32_t> FuseClient::CopyFileRange(uint64_t nodeid_in, uint64_t fh_in,
                                              uint64_t offset_in, uint64_t nodeid_out,
                                              uint64_t fh_out, uint64_t offset_out, uint64_t length,
                                              uint64_t flags) {
  const auto reply = Call(queue_, FUSE_COPY_FILE_RANGE, nodeid_in)
                         .Put(fuse_copy_file_range_in{.fh_in = fh_in,
                                                      .off_in = offset_in,
                                                      .nodeid_out = nodeid_out,
                                                      .fh_out = fh_out,
                                                      .off_out = offset_out,
                                                      .len = length,
                                                      .flags = flags})
                         .RunFor<fuse_write_out>();
  return {reply.error, reply.value.size};
}

FuseReply<fuse_open_out> FuseClient::OpenDir(uint64_t nodeid, uint32_t flags) {
  return Call(queue_, FUSE_OPENDIR, nodeid)
      .Put(fuse_open_in{.flags = flags, .open_flags = 0})
      .RunFor<fuse_open_out>();
}

FuseReply<std::vector<FuseDirEntry>> FuseClient::ReadEntries(uint32_t opcode, uint64_t nodeid,
                                                             uint64_t fh, uint64_t offset,
                                                             uint32_t size) {
  const auto reply = Call(queue_, opcode, nodeid)
                         .Put(fuse_read_in{.fh = fh,
                                           .offset = offset,
                                           .size = size,
                                           .read_flags = 0,
                                           .lock_owner = 0,
                                           .flags = 0,
                                           .padding = 0})
                         .RunForData(size);
  if (!reply.ok()) return {reply.error, {}};
  return ParseDirEntries(reply.value, opcode == FUSE_READDIRPLUS);
}

FuseReply<std::vector<FuseDirEntry>> FuseClient::ReadDir(uint64_t nodeid, uint64_t fh,
                                                         uint64_t offset, uint32_t size) {
  return ReadEntries(FUSE_READDIR, nodeid, fh, offset, size);
}

FuseReply<std::vector<FuseDirEntry>> FuseClient::ReadDirPlus(uint64_t nodeid, uint64_t fh,
                                                             uint64_t offset, uint32_t size) {
  return ReadEntries(FUSE_READDIRPLUS, nodeid, fh, offset, size);
}

int FuseClient::ReleaseDir(uint64_t nodeid, uint64_t fh) {
  return Call(queue_, FUSE_RELEASEDIR, nodeid)
      .Put(fuse_release_in{.fh = fh, .flags = 0, .release_flags = 0, .lock_owner = 0})
      .Run();
}

int FuseClient::FsyncDir(uint64_t nodeid, uint64_t fh, bool data_only) {
  return Call(queue_, FUSE_FSYNCDIR, nodeid)
      .Put(fuse_fsync_in{
          .fh = fh, .fsync_flags = data_only ? FUSE_FSYNC_FDATASYNC : 0u, .padding = 0})
      .Run();
}

FuseReply<fuse_kstatfs> FuseClient::StatFs(uint64_t nodeid) {
  const auto reply = Call(queue_, FUSE_STATFS, nodeid).RunFor<fuse_statfs_out>();
  return {reply.error, reply.value.st};
}

int FuseClient::SyncFs(uint64_t nodeid) {
  return Call(queue_, FUSE_SYNCFS, nodeid).Put(fuse_syncfs_in{}).Run();
}

int FuseClient::Access(uint64_t nodeid, uint32_t mask) {
  return Call(queue_, FUSE_ACCESS, nodeid).Put(fuse_access_in{.mask = mask, .padding = 0}).Run();
}

int FuseClient::SetXattr(uint64_t nodeid, std::string_view name, std::span<const std::byte> value,
                         uint32_t flags, uint32_t setxattr_flags) {
  const fuse_setxattr_in in{.size = static_cast<uint32_t>(value.size()),
                            .flags = flags,
                            .setxattr_flags = setxattr_flags,
                            .padding = 0};
  // Without SETXATTR_EXT the structure ends after its first two members.
  const size_t size =
      (init_->flags & FUSE_SETXATTR_EXT) != 0 ? sizeof(in) : FUSE_COMPAT_SETXATTR_IN_SIZE;
  return Call(queue_, FUSE_SETXATTR, nodeid)
      .PutBytes(std::as_bytes(std::span(&in, 1)).first(size))
      .Name(name)
      .Data(value)
      .Run();
}

FuseReply<std::vector<std::byte>> FuseClient::GetXattr(uint64_t nodeid, std::string_view name,
                                                       uint32_t size) {
  Call call(queue_, FUSE_GETXATTR, nodeid);
  call.Put(fuse_getxattr_in{.size = size, .padding = 0}).Name(name);
  if (size != 0) return call.RunForData(size);
  const auto reply = call.RunFor<fuse_getxattr_out>();
  return {reply.error, std::vector<std::byte>(reply.value.size)};
}

FuseReply<std::vector<std::byte>> FuseClient::ListXattr(uint64_t nodeid, uint32_t size) {
  Call call(queue_, FUSE_LISTXATTR, nodeid);
  call.Put(fuse_getxattr_in{.size = size, .padding = 0});
  if (size != 0) return call.RunForData(size);
  const auto reply = call.RunFor<fuse_getxattr_out>();
  return {reply.error, std::vector<std::byte>(reply.value.size)};
}

int FuseClient::RemoveXattr(uint64_t nodeid, std::string_view name) {
  return Call(queue_, FUSE_REMOVEXATTR, nodeid).Name(name).Run();
}

FuseReply<fuse_file_lock> FuseClient::GetLk(uint64_t nodeid, uint64_t fh, uint64_t owner,
                                            const fuse_file_lock& lock, uint32_t lk_flags) {
  const auto reply =
      Call(queue_, FUSE_GETLK, nodeid)
          .Put(fuse_lk_in{.fh = fh, .owner = owner, .lk = lock, .lk_flags = lk_flags, .padding = 0})
          .RunFor<fuse_lk_out>();
  return {reply.error, reply.value.lk};
}

int FuseClient::SetLk(uint64_t nodeid, uint64_t fh, uint64_t owner, const fuse_file_lock& lock,
                      bool wait, uint32_t lk_flags) {
  return Call(queue_, wait ? FUSE_SETLKW : FUSE_SETLK, nodeid)
      .Put(fuse_lk_in{.fh = fh, .owner = owner, .lk = lock, .lk_flags = lk_flags, .padding = 0})
      .Run();
}

FuseSlot* FuseClient::StartLkw(uint64_t nodeid, uint64_t fh, uint64_t owner,
                               const fuse_file_lock& lock, uint32_t lk_flags) {
  FuseSlot* const slot = queue_->Acquire();
  if (slot == nullptr) return nullptr;
  slot->Begin(FUSE_SETLKW, nodeid)
      .Put(fuse_lk_in{.fh = fh, .owner = owner, .lk = lock, .lk_flags = lk_flags, .padding = 0})
      .Expect(0);
  if (!queue_->Submit(slot).ok()) {
    queue_->Release(slot);
    return nullptr;
  }
  queue_->Flush();
  return slot;
}

int FuseClient::FinishLk(FuseSlot* slot) {
  const int trouble = FromStatus(queue_->Await(slot));
  const int result = trouble != 0 ? trouble : slot->error();
  queue_->Release(slot);
  return result;
}

int FuseClient::Interrupt(uint64_t unique) {
  // A server may leave INTERRUPT unanswered except for giving the buffer back.
  Call call(queue_, FUSE_INTERRUPT, 0);
  const int error = call.Put(fuse_interrupt_in{.unique = unique}).Run();
  return error == -EPROTO && call.slot()->written() == 0 ? 0 : error;
}

FuseReply<std::vector<std::byte>> FuseClient::Other(uint32_t opcode, uint64_t nodeid,
                                                    std::span<const std::byte> arguments,
                                                    uint32_t reply_capacity) {
  return Call(queue_, opcode, nodeid).PutBytes(arguments).RunForData(reply_capacity);
}

FuseRawReply FuseClient::Raw(std::span<const std::byte> request, uint32_t reply_capacity,
                             uint32_t in_split, uint32_t out_split) {
  FuseRawReply result;
  Call call(queue_, 0, 0);
  FuseSlot* const slot = call.slot();
  if (slot == nullptr) {
    result.error = -EBUSY;
    return result;
  }
  const auto area = slot->data();
  // The reply starts at a page of its own, so that what is written beyond it would show.
  const size_t reply_at = (request.size() + 4095) / 4096 * 4096;
  if (reply_at + reply_capacity > area.size()) {
    result.error = -EMSGSIZE;
    return result;
  }
  if (!request.empty()) std::memcpy(area.data(), request.data(), request.size());
  std::fill_n(area.begin() + static_cast<std::ptrdiff_t>(reply_at), reply_capacity, std::byte{0});
  const auto cut = [slot](size_t at, size_t size, uint32_t split) {
    std::vector<Segment> segments;
    const size_t step = split == 0 ? std::max<size_t>(size, 1) : split;
    for (size_t done = 0; done < size; done += step) {
      segments.push_back({.address = slot->data_range().address + at + done,
                          .length = static_cast<uint32_t>(std::min(step, size - done))});
    }
    return segments;
  };
  absl::Status status = queue_->SubmitRaw(slot, cut(0, request.size(), in_split),
                                          cut(reply_at, reply_capacity, out_split));
  if (status.ok()) {
    queue_->Flush();
    status = queue_->Await(slot);
  }
  result.error = FromStatus(status);
  if (!status.ok()) return result;
  result.written = slot->written();
  const auto reply = area.subspan(reply_at, reply_capacity);
  result.bytes.assign(reply.begin(), reply.end());
  return result;
}

FuseReply<std::vector<FuseDirEntry>> ParseDirEntries(std::span<const std::byte> data, bool plus) {
  FuseReply<std::vector<FuseDirEntry>> result;
  const size_t front = plus ? sizeof(fuse_entry_out) : 0;
  while (!data.empty()) {
    FuseDirEntry entry;
    fuse_dirent dirent{};
    constexpr size_t kBare = offsetof(fuse_dirent, name);
    if (data.size() < front + kBare) break;
    if (plus) std::memcpy(&entry.entry, data.data(), sizeof(entry.entry));
    std::memcpy(&dirent, data.data() + front, kBare);
    const size_t bare = front + kBare + dirent.namelen;
    if (dirent.namelen == 0 || dirent.namelen > 1024 || bare > data.size()) break;
    entry.name.assign(reinterpret_cast<const char*>(data.data() + front + kBare), dirent.namelen);
    entry.ino = dirent.ino;
    entry.next_offset = dirent.off;
    entry.type = dirent.type;
    result.value.push_back(std::move(entry));
    data = data.subspan(std::min<size_t>(data.size(), (bare + 7) / 8 * 8));
  }
  if (!data.empty()) result.error = -EPROTO;
  return result;
}

}  // namespace virtbay::guest
