#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "plugins/virtiofs/keep/replay.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/ownership.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

using Kind = AsyncOp::Kind;

constexpr uint64_t kSlowNs = 2'000'000;          // an inline write that took this long is slow
constexpr uint32_t kSlowInRow = 2;               // so many, and writes go to the ring
constexpr uint64_t kSlowWindowNs = 200'000'000;  // for this long
constexpr uint32_t kMaxRetries = 64;
constexpr uint64_t kPageMask = 4095;
constexpr uint64_t kMaxCopy = 0x7ffff000u;

bool RangeOk(uint64_t offset, uint64_t length) {
  return offset <= INT64_MAX && length <= INT64_MAX - offset;
}

// A read that stopped short can only have stopped at a page that is not cached, if it stopped at a
// page's edge; anywhere else it is the end of the file.
bool MayContinue(uint64_t offset, uint32_t done, uint32_t size) {
  return done < size && ((offset + done) & kPageMask) == 0;
}

// Queues what is left of a READ or WRITE (or the whole of another operation) in the ring. The
// request is the framework's until the result comes.
void Submit(Fs& fs, Worker& worker, AsyncOp* op, sdk::Request request) {
  virtbay_io io = {};
  io.struct_size = sizeof(io);
  io.queue = static_cast<uint16_t>(worker.queue);
  io.fd = op->fd;
  io.request = request.get();
  io.cookie = op->index;
  switch (op->kind) {
    case Kind::kRead:
    case Kind::kWrite:
      io.op = op->kind == Kind::kRead ? VIRTBAY_IO_READ : VIRTBAY_IO_WRITE;
      io.payload_offset = op->payload + op->done;
      io.payload_len = op->size - op->done;
      io.file_offset = op->offset + op->done;
      io.rw_flags = op->rw_flags;
      io.arg = op->handle->share->remote_fs ? VIRTBAY_IO_WORKER : 0;
      break;
    case Kind::kFsync:
      io.op = VIRTBAY_IO_FSYNC;
      io.arg = static_cast<uint32_t>(op->length);
      break;
    default:
      io.op = VIRTBAY_IO_FALLOCATE;
      io.arg = op->size;
      io.file_offset = op->offset;
      io.length = op->length;
      break;
  }
  if (!fs.host->Submit(&io, 1).ok()) {
    Call::Answer(fs, std::move(request), op->unique, EIO, {});
    worker.pool.Give(op);
    return;
  }
  sdk::Host::Add(fs.counters.submitted_io);
  request.Release();
}

AsyncOp* Begin(Call& c, Kind kind, HandleRef handle) {
  AsyncOp* op = c.worker.pool.Take();
  if (op == nullptr) return nullptr;
  op->kind = kind;
  op->unique = c.unique();
  op->fd = handle ? handle->fd : -1;
  op->handle = std::move(handle);
  op->offset = op->offset_out = op->length = 0;
  op->payload = op->size = op->done = op->retries = 0;
  op->rw_flags = 0;
  op->wide = false;
  op->all = nullptr;
  op->result = 0;
  return op;
}

void SubmitData(Call& c, Kind kind, HandleRef handle, uint64_t offset, uint32_t payload,
                uint32_t size, uint32_t done, uint32_t rw_flags = 0) {
  AsyncOp* op = Begin(c, kind, std::move(handle));
  if (op == nullptr) return c.Error(ENOMEM);
  op->offset = offset;
  op->rw_flags = rw_flags;
  op->payload = payload;
  op->size = size;
  op->done = done;
  Submit(c.fs, c.worker, op, std::move(c.request()));
}

void ReplyWritten(Call& c, uint32_t size) {
  sdk::Host::Add(c.fs.counters.bytes_written, size);
  c.Reply(fuse_write_out{size, 0});
}

// One write on this thread, timed: slow ones in a row send the handle's writes to the ring.
int64_t WriteInline(Call& c, Handle& handle, uint64_t offset, uint32_t at, uint32_t size,
                    uint32_t rw_flags) {
  Fs& fs = c.fs;
  if (!handle.no_nowait.load(std::memory_order_relaxed)) {
    const int64_t n = c.request().WriteNow(handle.fd, offset, at, size, rw_flags);
    if (n != -EAGAIN && n != -EOPNOTSUPP) return n;
    // Page cache writes of such a file system are short all the same, unless the host throttles
    // the writer, which is what the clock is for.
    handle.no_nowait.store(true, std::memory_order_relaxed);
    handle.share->no_nowait_writes.store(true, std::memory_order_relaxed);
  }
  const uint64_t start = fs.host->NowNs();
  const int64_t n = c.request().WriteBlocking(handle.fd, offset, at, size, rw_flags);
  const uint64_t end = fs.host->NowNs();
  if (end - start < kSlowNs) {
    if (handle.slow_writes.load(std::memory_order_relaxed) != 0) {
      handle.slow_writes.store(0, std::memory_order_relaxed);
    }
    return n;
  }
  sdk::Host::Add(fs.counters.slow_writes);
  if (handle.slow_writes.fetch_add(1, std::memory_order_relaxed) + 1 >= kSlowInRow) {
    handle.slow_writes.store(kSlowInRow - 1, std::memory_order_relaxed);
    handle.submit_until.store(end + kSlowWindowNs, std::memory_order_relaxed);
  }
  return n;
}

bool SubmitsWrites(Fs& fs, Handle& handle) {
  if (handle.direct) return true;
  const uint64_t until = handle.submit_until.load(std::memory_order_relaxed);
  if (until == 0) return false;
  if (fs.host->NowNs() < until) return true;
  handle.submit_until.store(0, std::memory_order_relaxed);
  return false;
}

// A write by somebody who may not keep set-user-ID bits. The bits are rare: look first.
bool HasPrivilegeBits(Call& c, const Handle& handle) {
  if (Stamps(*handle.share)) DropPrivilegeBits(c, *handle.inode, handle.fd);
  struct stat st;
  return ::fstat(handle.fd, &st) != 0 || (st.st_mode & (S_ISUID | S_ISGID)) != 0;
}

void Sync(Call& c) {
  const auto in = c.Arg<fuse_fsync_in>();
  HandleRef handle = c.fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle) return c.Error(EBADF);
  AsyncOp* op = Begin(c, Kind::kFsync, std::move(handle));
  if (op == nullptr) return c.Error(ENOMEM);
  op->length = (in.fsync_flags & FUSE_FSYNC_FDATASYNC) != 0 ? 1 : 0;
  Submit(c.fs, c.worker, op, std::move(c.request()));
}

// Runs on a thread of the host: what io_uring has no operation for.
void RunOffloaded(void* argument) {
  auto* op = static_cast<AsyncOp*>(argument);
  if (op->kind == Kind::kSyncfs) {
    op->result = op->all != nullptr ? -op->all->Sync() : ::syncfs(op->fd) == 0 ? 0 : -errno;
    return;
  }
  auto in = static_cast<off64_t>(op->offset);
  auto out = static_cast<off64_t>(op->offset_out);
  const ssize_t n = ::copy_file_range(op->handle->fd, &in, op->second->fd, &out,
                                      static_cast<size_t>(op->length), 0);
  op->result = n < 0 ? -errno : n;
}

void OffloadOp(Call& c, AsyncOp* op) {
  op->request = c.request().Release();
  if (c.fs.host->Offload(c.worker.queue, &RunOffloaded, op, op->index).ok()) return;
  Call::Answer(c.fs, sdk::Request(c.fs.host, op->request), op->unique, EAGAIN, {});
  if (op->kind == Kind::kSyncfs && op->fd >= 0) c.fs.budget.Close(op->fd, false);
  c.worker.pool.Give(op);
}

void CopyRange(Call& c, bool wide) {
  const auto in = c.Arg<fuse_copy_file_range_in>();
  HandleRef from = c.fs.handles.Find(in.fh_in, c.header().nodeid);
  HandleRef to = c.fs.handles.Find(in.fh_out, in.nodeid_out);
  if (!from || !to || from->is_dir || to->is_dir) return c.Error(EBADF);
  if (in.flags != 0) return c.Error(EINVAL);
  const uint64_t length = std::min(in.len, kMaxCopy);
  if (!RangeOk(in.off_in, length) || !RangeOk(in.off_out, length)) return c.Error(EINVAL);
  const uint64_t there = keep::BeginCopy(c, from->fd, in.off_in, length);
  AsyncOp* op = Begin(c, Kind::kCopy, std::move(from));
  if (op == nullptr) return c.Error(ENOMEM);
  op->second = std::move(to);
  op->offset = in.off_in;
  op->offset_out = in.off_out;
  op->length = there;
  op->wide = wide;
  OffloadOp(c, op);
}

// A READ or WRITE that moved `n` more bytes. True: it goes on in the ring.
bool Progress(Fs& fs, Worker& worker, AsyncOp* op, virtbay_request* raw, int32_t n) {
  const bool read = op->kind == Kind::kRead;
  if (n == -EINTR || n == -EAGAIN) {
    if (op->retries++ >= kMaxRetries) return false;
  } else if (n <= 0) {
    return false;
  } else {
    op->done += static_cast<uint32_t>(n);
    if (op->done >= op->size || (read && !MayContinue(op->offset, op->done, op->size))) {
      return false;
    }
  }
  Submit(fs, worker, op, sdk::Request(fs.host, raw));
  return true;
}

}  // namespace

void OpRead(Call& c) {
  const auto in = c.Arg<fuse_read_in>();
  Fs& fs = c.fs;
  sdk::Host::Add(fs.counters.data);
  HandleRef handle = fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle) return c.Error(EBADF);
  if (handle->is_dir) return c.Error(EISDIR);
  const uint32_t size = std::min(in.size, c.room());
  if (!RangeOk(in.offset, size)) return c.Error(EINVAL);
  Share& share = *handle->share;
  if (handle->direct ||
      (share.no_nowait_reads.load(std::memory_order_relaxed) && !share.memory_fs)) {
    return SubmitData(c, Kind::kRead, std::move(handle), in.offset, kOutHeader, size, 0);
  }
  uint32_t done = 0;
  for (;;) {
    int64_t n = c.request().ReadNow(handle->fd, in.offset + done, kOutHeader + done, size - done);
    if (n == -EOPNOTSUPP) {
      share.no_nowait_reads.store(true, std::memory_order_relaxed);
      if (share.memory_fs) {
        n = c.request().ReadBlocking(handle->fd, in.offset + done, kOutHeader + done, size - done);
      }
    }
    if (n == -EINTR) continue;
    if (n == -EAGAIN || n == -EOPNOTSUPP) {
      return SubmitData(c, Kind::kRead, std::move(handle), in.offset, kOutHeader, size, done);
    }
    if (n < 0 && done == 0) return c.Error(static_cast<int>(-n));
    if (n <= 0) break;
    done += static_cast<uint32_t>(n);
    if (!MayContinue(in.offset, done, size)) break;
  }
  sdk::Host::Add(fs.counters.bytes_read, done);
  sdk::Host::Add(fs.counters.inline_reads);
  Call::AnswerData(std::move(c.request()), c.unique(), done);
}

void OpWrite(Call& c) {
  const auto in = c.Arg<fuse_write_in>();
  Fs& fs = c.fs;
  sdk::Host::Add(fs.counters.data);
  // At the end of the file as the host knows it. Not for pages of the guest's cache: those have a
  // place of their own, whatever the file was opened with.
  const bool append = (in.flags & O_APPEND) != 0 && (in.write_flags & FUSE_WRITE_CACHE) == 0 &&
                      !fs.has(FUSE_WRITEBACK_CACHE);
  if (append && fs.keep != nullptr && c.Replay()) return;
  HandleRef handle = fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle || !handle->writable) return c.Error(EBADF);
  if (in.size > c.header().len - kWriteDataOffset || in.size > fs.options.max_write) {
    return c.Error(EINVAL);
  }
  if (!RangeOk(in.offset, in.size)) return c.Error(EFBIG);
  const bool kill = (in.write_flags & FUSE_WRITE_KILL_SUIDGID) != 0 && HasPrivilegeBits(c, *handle);
  const uint32_t rw_flags = append ? RWF_APPEND : 0;
  uint32_t done = 0;
  if (append) {
    done = keep::BeginAppend(c, handle->fd, in.size);
    if (done != 0 && done == in.size) return ReplyWritten(c, done);
  }
  if (!kill && SubmitsWrites(fs, *handle)) {
    return SubmitData(c, Kind::kWrite, std::move(handle), in.offset, kWriteDataOffset, in.size,
                      done, rw_flags);
  }
  const WithoutFsetid guard(fs, c.worker, kill);
  for (;;) {
    const int64_t n = WriteInline(c, *handle, in.offset + done, kWriteDataOffset + done,
                                  in.size - done, rw_flags);
    if (n == -EINTR) continue;
    if (n == -EAGAIN && !kill) {
      return SubmitData(c, Kind::kWrite, std::move(handle), in.offset, kWriteDataOffset, in.size,
                        done, rw_flags);
    }
    if (n < 0 && done == 0) return c.Error(static_cast<int>(-n));
    if (n <= 0) break;
    done += static_cast<uint32_t>(n);
    if (done >= in.size) break;
  }
  ReplyWritten(c, done);
}

void OpFsync(Call& c) { Sync(c); }
void OpFsyncdir(Call& c) { Sync(c); }

void OpFallocate(Call& c) {
  const auto in = c.Arg<fuse_fallocate_in>();
  HandleRef handle = c.fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle || !handle->writable) return c.Error(EBADF);
  if (!RangeOk(in.offset, in.length)) return c.Error(EFBIG);
  AsyncOp* op = Begin(c, Kind::kFallocate, std::move(handle));
  if (op == nullptr) return c.Error(ENOMEM);
  op->offset = in.offset;
  op->length = in.length;
  op->size = in.mode;
  Submit(c.fs, c.worker, op, std::move(c.request()));
}

void OpLseek(Call& c) {
  const auto in = c.Arg<fuse_lseek_in>();
  const HandleRef handle = c.fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle) return c.Error(EBADF);
  // A directory's position belongs to READDIR, and SEEK_CUR has no meaning across requests.
  if (handle->is_dir || in.offset > INT64_MAX) return c.Error(EINVAL);
  if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE && in.whence != SEEK_SET &&
      in.whence != SEEK_END) {
    return c.Error(EINVAL);
  }
  const off_t at = ::lseek(handle->fd, static_cast<off_t>(in.offset), static_cast<int>(in.whence));
  if (at < 0) return c.Error(errno);
  c.Reply(fuse_lseek_out{static_cast<uint64_t>(at)});
}

void OpCopyFileRange(Call& c) { CopyRange(c, false); }
void OpCopyFileRange64(Call& c) { CopyRange(c, true); }

void OpSyncfs(Call& c) {
  const InodeRef inode = c.Target();
  if (!inode) return;
  Fs& fs = c.fs;
  int fd = -1;
  const Share& share = *inode->share;
  if (share.aggregate != nullptr) {
    AsyncOp* op = Begin(c, Kind::kSyncfs, HandleRef());
    if (op == nullptr) return c.Error(ENOMEM);
    op->all = share.aggregate;
    return OffloadOp(c, op);
  }
  if (inode->key.mnt_id == share.root_mnt_id) {
    fd = fs.OpenCounted(FdKind::kShort, [&] {
      const int copy = ::fcntl(share.root_fd, F_DUPFD_CLOEXEC, 0);
      return copy < 0 ? -errno : copy;
    });
  } else {
    // A mount below the share: any descriptor on it that is not O_PATH will do.
    fd = fs.OpenForIo(*inode, inode->is_dir() ? O_RDONLY | O_DIRECTORY : O_RDONLY);
  }
  if (fd < 0) return c.Error(-fd);
  AsyncOp* op = Begin(c, Kind::kSyncfs, HandleRef());
  if (op == nullptr) {
    fs.budget.Close(fd, false);
    return c.Error(ENOMEM);
  }
  op->fd = fd;
  OffloadOp(c, op);
}

void OnAsyncResult(Fs& fs, Worker& worker, const virtbay_io_result& result) {
  AsyncOp* op = worker.pool.Find(result.cookie);
  if (op == nullptr) return;
  const Kind kind = op->kind;
  if ((kind == Kind::kRead || kind == Kind::kWrite) &&
      Progress(fs, worker, op, result.request, result.result)) {
    return;
  }
  sdk::Request request(fs.host, result.request);
  const int error = result.result < 0 && op->done == 0 ? -result.result : 0;
  const uint64_t unique = op->unique;
  const uint32_t done = op->done;
  // The handle goes before the answer: the guest may count on a RELEASE having closed it.
  worker.pool.Give(op);
  if (kind == Kind::kRead && error == 0) {
    sdk::Host::Add(fs.counters.bytes_read, done);
    Call::AnswerData(std::move(request), unique, done);
  } else if (kind == Kind::kWrite && error == 0) {
    sdk::Host::Add(fs.counters.bytes_written, done);
    const fuse_write_out out = {done, 0};
    Call::Answer(fs, std::move(request), unique, 0, std::as_bytes(std::span(&out, 1)));
  } else {
    Call::Answer(fs, std::move(request), unique, error, {});
  }
}

void OnAsyncOffload(Fs& fs, Worker& worker, uint64_t cookie) {
  AsyncOp* op = worker.pool.Find(cookie);
  if (op == nullptr) return;
  sdk::Request request(fs.host, op->request);
  const int error = op->result < 0 ? static_cast<int>(-op->result) : 0;
  const uint64_t copied = static_cast<uint64_t>(std::max<int64_t>(op->result, 0));
  const Kind kind = op->kind;
  const uint64_t unique = op->unique;
  const bool wide = op->wide;
  if (kind == Kind::kSyncfs && op->fd >= 0) fs.budget.Close(op->fd, false);
  worker.pool.Give(op);
  if (kind == Kind::kSyncfs) {
    Call::Answer(fs, std::move(request), unique, error, {});
  } else if (wide) {
    const CopyFileRangeOut out = {copied};
    Call::Answer(fs, std::move(request), unique, error, std::as_bytes(std::span(&out, 1)));
  } else {
    const fuse_write_out out = {static_cast<uint32_t>(copied), 0};
    Call::Answer(fs, std::move(request), unique, error, std::as_bytes(std::span(&out, 1)));
  }
}

}  // namespace virtbay::virtiofs
