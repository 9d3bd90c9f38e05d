// The opcode handlers, by family. Each one ends its request exactly once, now or (data, locks,
// blocking work) later through OnIo, OnOffload, OnTimer of the same queue.
// All [queue]; the dispatcher has checked header, argument size and room for the answer.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_OPS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_OPS_H_

#include <sys/stat.h>

#include <array>
#include <span>
#include <string_view>

#include "plugins/virtiofs/call.h"
#include "plugins/virtiofs/metadata.h"
#include "plugins/virtiofs/wire.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::virtiofs {

// session.cc
void OpInit(Call& c);
// [any] The FUSE_* bits of INIT that a session can have under some options.
uint64_t KnownInitFlags();
void OpDestroy(Call& c);

// lookup.cc
void OpLookup(Call& c);
void OpForget(Call& c);
void OpBatchForget(Call& c);
void OpReadlink(Call& c);

// attr.cc
void OpGetattr(Call& c);
void OpSetattr(Call& c);
void OpStatx(Call& c);
void OpAccess(Call& c);
void OpStatfs(Call& c);

// namespace.cc
void OpMknod(Call& c);
void OpMkdir(Call& c);
void OpSymlink(Call& c);
void OpLink(Call& c);
void OpUnlink(Call& c);
void OpRmdir(Call& c);
void OpRename(Call& c);
void OpRename2(Call& c);

// open.cc
void OpOpen(Call& c);
void OpCreate(Call& c);
void OpTmpfile(Call& c);
void OpRelease(Call& c);
void OpFlush(Call& c);
void OpOpendir(Call& c);
void OpReleasedir(Call& c);

// dir.cc
void OpReaddir(Call& c);
void OpReaddirplus(Call& c);

// file_io.cc
void OpRead(Call& c);
void OpWrite(Call& c);
void OpFsync(Call& c);
void OpFsyncdir(Call& c);
void OpFallocate(Call& c);
void OpLseek(Call& c);
void OpCopyFileRange(Call& c);
void OpCopyFileRange64(Call& c);
void OpSyncfs(Call& c);
void OnAsyncResult(Fs& fs, Worker& worker, const virtbay_io_result& result);
void OnAsyncOffload(Fs& fs, Worker& worker, uint64_t cookie);

// lock_ops.cc
void OpGetlk(Call& c);
void OpSetlk(Call& c);
void OpSetlkw(Call& c);
void OpInterrupt(Call& c);
// Tries the waiting requests of this queue again, and sets its timer.
void RetryParked(Fs& fs, Worker& worker);
void OnLockPoll(Fs& fs, Worker& worker);
// Hands all waiting requests back.
void RequeueParked(Fs& fs, Worker& worker);

// xattr.cc
void OpSetxattr(Call& c);
void OpGetxattr(Call& c);
void OpListxattr(Call& c);
void OpRemovexattr(Call& c);

// ---- shared by the families ---------------------------------------------------------------------

// attr.cc
void FillAttr(const struct statx& st, fuse_attr* attr);
// The answer that makes `inode` (with its lookup counted) known under a name in `parent`.
void FillEntry(const Fs& fs, const Inode& inode, const Inode& parent, const struct statx& st,
               fuse_entry_out* entry);

// attr.cc: attributes as the guest is to see them.
void PresentTo(Call& c, const Share& share, const FileAt& file, struct statx* st);
// 0 or errno.
int StatPresented(Call& c, Inode& inode, struct statx* st, uint32_t extra_mask = 0,
                  int sync_flags = 0);

// lookup.cc: an entry for (parent, name): statx, inode, name. 0 or errno; on success one lookup of
// the guest is counted.
int MakeEntry(Call& c, Inode& parent, int parent_fd, std::string_view name, fuse_entry_out* entry);
// The same when the host's attributes of `file` are known already. An empty result is ENOMEM.
InodeRef EnterInode(Call& c, Inode& parent, const FileAt& file, std::string_view name,
                    const struct statx& st, fuse_entry_out* entry);
// What is called `name`, NUL-terminated, in the directory behind dirfd: the name itself, or with
// case=off one that differs in case only, if there is such a one and not `name`; in *space then.
std::string_view RealName(Call& c, const Inode& dir, int dirfd, std::string_view name,
                          std::array<char, 256>* space);

// credentials of the guest's caller around a create-type operation.
class AsCaller {
 public:
  // 0 or errno. `umask` is that of the guest's process, applied when the guest left it to us.
  int Enter(Call& c, const Share& share, uint32_t umask);
  // False: the thread is condemned and the request must be answered with EIO.
  bool Leave(Call& c);
  ~AsCaller();
  // The mode to give to the system call.
  static mode_t ModeFor(const Call& c, uint32_t mode, uint32_t umask);

 private:
  Call* call_ = nullptr;
  bool switched_ = false;
  bool umask_set_ = false;
};

// The thread without CAP_FSETID, so that the host clears set-user-ID bits.
class WithoutFsetid {
 public:
  WithoutFsetid(Fs& fs, Worker& worker, bool wanted);
  ~WithoutFsetid();

 private:
  Fs& fs_;
  Worker& worker_;
  bool dropped_;
};

// This queue's thread is not what it was.
void Condemn(const Fs& fs, Worker& worker);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_OPS_H_
