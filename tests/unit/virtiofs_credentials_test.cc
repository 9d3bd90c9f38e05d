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
#include <filesystem>

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

// Number of the first expectation that failed, 0 for none.
int ServeWithoutReturn() {
  if (!ForbidComingBack()) return 1;
  ShareOptions options;
  options.options = {{"request-queues", "2"}};
  options.session.request_queues = 2;
  options.session.queue.timeout = absl::Seconds(5);
  Share share(std::move(options));
  if (!share.ready()) return 2;
  stdfs::permissions(share.dir().path(), stdfs::perms(0777));
  share.fs(0).queue().set_caller({.uid = 1000, .gid = 1000, .groups = {}});
  // Whatever became of the file: the answer is an error, or there is none.
  if (share.fs(0).Create(kRoot, "file", O_RDWR, 0600).ok()) return 3;
  share.fs(0).queue().set_caller({});
  auto info = share.host().Inspect("share");
  for (int i = 0; i < 500 && info.ok() && !info->needs_reset; ++i) {
    usleep(10'000);
    info = share.host().Inspect("share");
  }
  if (!info.ok() || !info->needs_reset) return 4;
  // Never again on that thread; the other queue's thread has done nothing wrong.
  if (share.fs(0).Mkdir(kRoot, "as-somebody", 0700).ok()) return 5;
  if (stdfs::exists(share.dir().path() / "as-somebody")) return 6;
  if (share.fs(1).GetAttr(kRoot).error != 0) return 7;
  // A new session begins with new threads.
  share.Connect();
  if (!share.ready() || share.fs().GetAttr(kRoot).error != 0) return 8;
  return 0;
}

TEST(VirtioFsCredentials, AThreadThatCannotComeBackNeverServesAgain) {
  if (geteuid() != 0) GTEST_SKIP() << "needs the right to act as another user";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(ServeWithoutReturn());
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0) << "see ServeWithoutReturn";
}

}  // namespace
}  // namespace virtbay::testing
