// A queue thread that cannot take its own credentials back after acting as a user of the guest.
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "tests/support/process_state.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

// From now on nobody in this process becomes user 0 again: setresuid(*, 0, *) fails with EPERM, as
// a broken security module might do it.
bool ForbidComingBack() {
  constexpr auto kLow = static_cast<uint32_t>(offsetof(seccomp_data, args) + 8);
  std::array<sock_filter, 6> filter = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setresuid, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kLow),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program = {filter.size(), filter.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

using guest::FuseSlot;

bool RingStopped(Share& share, uint32_t queue) {
  auto info = share.host().Inspect("share");
  for (int i = 0; i < 500 && info.ok() && !info->queues[queue].broken; ++i) {
    usleep(10'000);
    info = share.host().Inspect("share");
  }
  return info.ok() && info->queues[queue].broken;
}

bool NeedsReset(Share& share) {
  const auto info = share.host().Inspect("share");
  return !info.ok() || info->needs_reset;
}

// A request that has the thread of that queue act as a user of the guest, and not come back.
int CreateAsSomebody(Share& share, uint32_t queue) {
  share.fs(queue).queue().set_caller({.uid = 1000, .gid = 1000, .groups = {}});
  const int error = share.fs(queue).Create(kRoot, "file", O_RDWR, 0600).error;
  share.fs(queue).queue().set_caller({});
  return error;
}

void ServeWithoutReturn() {
  ASSERT_TRUE(ForbidComingBack());
  ShareOptions options;
  options.options = {{"request-queues", "2"}};
  options.session.request_queues = 2;
  options.session.queue.timeout = absl::Seconds(1);
  Share share(std::move(options));
  ASSERT_TRUE(share.ready());
  stdfs::permissions(share.dir().path(), stdfs::perms(0777));
  share.dir().Write("locked", "");
  const uint64_t node = share.Node("locked");
  const uint64_t fh = share.OpenPath("locked", O_RDWR);
  const fuse_file_lock lock = {0, INT64_MAX, F_WRLCK, 1};
  ASSERT_EQ(share.fs(1).SetLk(node, fh, 1, lock, false), 0);
  FuseSlot* const waiting = share.fs(0).StartLkw(node, fh, 2, lock);
  ASSERT_NE(waiting, nullptr);

  EXPECT_EQ(CreateAsSomebody(share, 0), EIO);
  EXPECT_TRUE(RingStopped(share, 1));
  EXPECT_EQ(share.fs(0).FinishLk(waiting), EIO) << "what it had taken is answered";
  // Never again on that thread; the other queue's thread has done nothing wrong.
  EXPECT_FALSE(NeedsReset(share));
  EXPECT_LT(share.fs(0).Mkdir(kRoot, "as-somebody", 0700).error, 0);
  EXPECT_FALSE(stdfs::exists(share.dir() / "as-somebody"));
  EXPECT_EQ(share.fs(1).GetAttr(kRoot).error, 0);
  EXPECT_EQ(share.fs(1).Mkdir(kRoot, "as-oneself", 0700).error, 0);
  // The last one that serves requests; that the hiprio queue's is left is no use to anybody.
  EXPECT_EQ(CreateAsSomebody(share, 1), EIO);
  EXPECT_TRUE(RingStopped(share, 2));
  EXPECT_TRUE(Eventually([&] { return NeedsReset(share); })) << "set when the ring has stopped";
  EXPECT_EQ(share.session().hiprio().Forget(node, 1), 0);
  // A new session begins with new threads.
  share.Connect();
  ASSERT_TRUE(share.ready());
  EXPECT_FALSE(NeedsReset(share));
  EXPECT_EQ(share.fs().GetAttr(kRoot).error, 0);
}

TEST(VirtioFsCredentials, AThreadThatCannotComeBackNeverServesAgain) {
  if (geteuid() != 0) GTEST_SKIP() << "needs the right to act as another user";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ServeWithoutReturn();
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0) << "see above";
}

}  // namespace
}  // namespace virtbay::testing
