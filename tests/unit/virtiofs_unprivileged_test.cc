// A server that is not root: what it created with a mode that lets nobody open it again, itself
// included, can be locked by whoever has it open.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "framework/base/unique_fd.h"
#include "tests/support/without_privilege.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

constexpr uint64_t kEnd = INT64_MAX;

fuse_file_lock Lock(uint32_t type, uint64_t start = 0, uint64_t end = kEnd, uint32_t pid = 42) {
  return {start, end, type, pid};
}

struct File {
  File(Share& the_share, const char* name, uint32_t flags, uint32_t mode) : share(the_share) {
    const auto made = share.fs().Create(kRoot, name, flags, mode);
    EXPECT_EQ(made.error, 0) << name;
    node = made.value.entry.nodeid;
    fh = made.value.open.fh;
  }
  int Set(uint64_t owner, const fuse_file_lock& lock, uint32_t flags = 0) {
    return share.fs().SetLk(node, fh, owner, lock, false, flags);
  }
  Share& share;
  uint64_t node = 0;
  uint64_t fh = 0;
};

// Somebody else on the host, who was there before the mode was taken away.
class HostProcess {
 public:
  HostProcess(Share& share, const char* name) {
    const auto path = share.dir() / name;
    struct stat st = {};
    EXPECT_EQ(stat(path.c_str(), &st), 0);
    EXPECT_EQ(chmod(path.c_str(), 0600), 0);
    fd_.reset(open(path.c_str(), O_RDWR | O_CLOEXEC));
    EXPECT_EQ(chmod(path.c_str(), st.st_mode & 07777), 0);
  }
  bool Takes(short type, off_t start, off_t length) {
    struct flock lock = {};
    lock.l_type = type;
    lock.l_start = start;
    lock.l_len = length;
    const bool taken = fcntl(fd_.get(), F_OFD_SETLK, &lock) == 0;
    lock.l_type = F_UNLCK;
    EXPECT_TRUE(!taken || fcntl(fd_.get(), F_OFD_SETLK, &lock) == 0);
    return taken;
  }
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

TEST(VirtioFsUnprivileged, AFileJustMadeCanBeLockedWhateverItsMode) {
  WithoutPrivilege(VIRTBAY_VIRTIOFS_PLUGIN, [] {
    Share share;
    ASSERT_TRUE(share.ready());
    for (const uint32_t mode : {0400u, 0200u, 0000u, 0600u}) {
      const std::string name = "file" + std::to_string(mode);
      File file(share, name.c_str(), O_RDWR, mode);
      HostProcess host(share, name.c_str());
      EXPECT_EQ(file.Set(1, Lock(F_WRLCK, 0, 9)), 0) << mode;
      EXPECT_FALSE(host.Takes(F_RDLCK, 5, 1)) << mode;
      EXPECT_EQ(file.Set(1, Lock(F_RDLCK, 0, 9)), 0) << mode;
      EXPECT_TRUE(host.Takes(F_RDLCK, 5, 1)) << mode;
      EXPECT_FALSE(host.Takes(F_WRLCK, 5, 1)) << mode;
      EXPECT_EQ(file.Set(1, Lock(F_UNLCK)), 0) << mode;
      EXPECT_TRUE(host.Takes(F_WRLCK, 0, 0)) << mode;
      EXPECT_EQ(file.Set(1, Lock(F_WRLCK), FUSE_LK_FLOCK), 0) << mode;
      EXPECT_EQ(flock(host.fd(), LOCK_SH | LOCK_NB), -1) << mode;
      EXPECT_EQ(share.fs().Release(file.node, file.fh), 0);
      EXPECT_EQ(flock(host.fd(), LOCK_EX | LOCK_NB), 0) << mode;
    }
    // Opened for one thing only.
    File writer(share, "writer", O_WRONLY, 0400);
    EXPECT_EQ(writer.Set(1, Lock(F_WRLCK)), 0);
    EXPECT_EQ(writer.Set(1, Lock(F_RDLCK)), EBADF);
  });
}

// Processes that share the handle (fork) are different owners with one description on the host.
TEST(VirtioFsUnprivileged, OwnersOfOneHandleAreToldApart) {
  WithoutPrivilege(VIRTBAY_VIRTIOFS_PLUGIN, [] {
    Share share;
    ASSERT_TRUE(share.ready());
    File file(share, "file", O_RDWR, 0400);
    HostProcess host(share, "file");
    auto& fs = share.fs();
    EXPECT_EQ(file.Set(1, Lock(F_RDLCK, 0, 19, 100)), 0);
    EXPECT_EQ(file.Set(2, Lock(F_RDLCK, 10, 29, 200)), 0);
    EXPECT_EQ(file.Set(2, Lock(F_WRLCK, 15, 15)), EAGAIN);
    EXPECT_EQ(file.Set(3, Lock(F_WRLCK, 29, 29)), EAGAIN);
    const auto held = fs.GetLk(file.node, file.fh, 3, Lock(F_WRLCK, 25, 29));
    EXPECT_EQ(held.value.type, static_cast<uint32_t>(F_RDLCK));
    EXPECT_EQ(held.value.pid, 200u);
    EXPECT_EQ(fs.GetLk(file.node, file.fh, 2, Lock(F_WRLCK, 0, 9)).value.pid, 100u);
    EXPECT_EQ(fs.GetLk(file.node, file.fh, 3, Lock(F_RDLCK)).value.type,
              static_cast<uint32_t>(F_UNLCK));
    // What both hold stays locked until both have given it up.
    EXPECT_EQ(file.Set(1, Lock(F_UNLCK, 5, 14)), 0);
    EXPECT_TRUE(host.Takes(F_WRLCK, 5, 5));
    EXPECT_FALSE(host.Takes(F_WRLCK, 10, 1));
    EXPECT_FALSE(host.Takes(F_WRLCK, 4, 1));
    EXPECT_EQ(file.Set(2, Lock(F_WRLCK, 10, 14)), 0);
    EXPECT_FALSE(host.Takes(F_RDLCK, 12, 1));
    // A process ends.
    EXPECT_EQ(fs.Flush(file.node, file.fh, 2), 0);
    EXPECT_TRUE(host.Takes(F_WRLCK, 5, 10));
    EXPECT_TRUE(host.Takes(F_WRLCK, 20, 0));
    EXPECT_FALSE(host.Takes(F_WRLCK, 15, 1));
    // One waits for the other, and is woken.
    guest::FuseSlot* waiting = fs.StartLkw(file.node, file.fh, 2, Lock(F_WRLCK, 0, kEnd));
    ASSERT_NE(waiting, nullptr);
    EXPECT_EQ(fs.GetAttr(kRoot).error, 0);
    EXPECT_EQ(share.Metric("parked_locks"), 1u);
    EXPECT_EQ(file.Set(1, Lock(F_UNLCK)), 0);
    EXPECT_EQ(fs.FinishLk(waiting), 0);
    EXPECT_FALSE(host.Takes(F_RDLCK, 1000, 1));
    EXPECT_EQ(fs.Release(file.node, file.fh), 0);
    EXPECT_TRUE(host.Takes(F_WRLCK, 0, 0));
  });
}

// A file that nobody may open for both: no description can hold a read and a write lock, in
// whichever order they come.
TEST(VirtioFsUnprivileged, ReadAndWriteLocksOfOneOwnerNeedOneDescription) {
  WithoutPrivilege(VIRTBAY_VIRTIOFS_PLUGIN, [] {
    Share share;
    ASSERT_TRUE(share.ready());
    File writer(share, "file", O_WRONLY, 0400);
    HostProcess host(share, "file");
    auto& fs = share.fs();
    const uint64_t reader = share.OpenPath("file", O_RDONLY);
    const auto read = [&](uint64_t owner, const fuse_file_lock& lock) {
      return fs.SetLk(writer.node, reader, owner, lock, false);
    };
    EXPECT_EQ(read(1, Lock(F_RDLCK, 0, 9)), 0);
    EXPECT_EQ(writer.Set(1, Lock(F_WRLCK, 20, 29)), ENOLCK);
    EXPECT_FALSE(host.Takes(F_WRLCK, 0, 10)) << "what was held is held";
    EXPECT_EQ(read(1, Lock(F_UNLCK)), 0);
    EXPECT_EQ(writer.Set(1, Lock(F_WRLCK, 20, 29)), 0) << "one after the other can be had";
    EXPECT_EQ(read(1, Lock(F_RDLCK, 0, 9)), ENOLCK);
    EXPECT_FALSE(host.Takes(F_RDLCK, 20, 10));
    EXPECT_TRUE(host.Takes(F_WRLCK, 0, 10));
    EXPECT_EQ(read(2, Lock(F_RDLCK, 0, 9)), 0) << "another owner has its own";
    EXPECT_EQ(writer.Set(1, Lock(F_UNLCK)), 0);
    EXPECT_EQ(read(1, Lock(F_RDLCK, 0, 9)), 0);
    EXPECT_EQ(read(1, Lock(F_WRLCK, 0, 9)), EBADF) << "as everywhere";
  });
}

// The owner's first lock came through a descriptor that may only read; it loses nothing when it
// wants more through one that may.
TEST(VirtioFsUnprivileged, ReadLocksMoveToAWiderDescription) {
  WithoutPrivilege(VIRTBAY_VIRTIOFS_PLUGIN, [] {
    Share share;
    ASSERT_TRUE(share.ready());
    File file(share, "file", O_RDWR, 0400);
    HostProcess host(share, "file");
    auto& fs = share.fs();
    const uint64_t reader = share.OpenPath("file", O_RDONLY);
    EXPECT_EQ(fs.SetLk(file.node, reader, 1, Lock(F_RDLCK, 0, 9), false), 0);
    EXPECT_EQ(fs.SetLk(file.node, reader, 1, Lock(F_RDLCK, 20, 29), false), 0);
    EXPECT_EQ(fs.SetLk(file.node, reader, 1, Lock(F_WRLCK, 0, 9), false), EBADF);
    EXPECT_EQ(file.Set(2, Lock(F_RDLCK, 0, 9)), 0) << "beside it, on the handle's own";
    EXPECT_EQ(file.Set(1, Lock(F_WRLCK, 25, 39)), 0);
    EXPECT_FALSE(host.Takes(F_WRLCK, 0, 10));
    EXPECT_FALSE(host.Takes(F_WRLCK, 20, 5));
    EXPECT_FALSE(host.Takes(F_RDLCK, 39, 1));
    EXPECT_EQ(file.Set(2, Lock(F_UNLCK)), 0);
    EXPECT_FALSE(host.Takes(F_WRLCK, 0, 10));
    EXPECT_EQ(file.Set(1, Lock(F_WRLCK, 0, 9)), 0);
    EXPECT_FALSE(host.Takes(F_RDLCK, 0, 10));
    EXPECT_EQ(fs.Flush(file.node, file.fh, 1), 0);
    EXPECT_TRUE(host.Takes(F_WRLCK, 0, 0));
  });
}

}  // namespace
}  // namespace virtbay::testing
