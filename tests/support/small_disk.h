// OnSmallDisk: runs part of a test in a process that has a file system of a given size, a child of
// this one in a mount namespace of its own.
// Stateless; called while this process has one thread.
#ifndef VIRTBAY_TESTS_SUPPORT_SMALL_DISK_H_
#define VIRTBAY_TESTS_SUPPORT_SMALL_DISK_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

namespace virtbay::testing {

// A tmpfs of `size` (as of mount: "2M") at `dir`, which is there; the failures of `body` are the
// test's, and so is its end by a signal. Skips where it cannot be mounted.
template <typename Body>
void OnSmallDisk(const std::string& dir, const char* size, Body&& body) {
  constexpr int kSkipped = 77;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool mounted = unshare(CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) == 0 &&
                         mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                         mount("none", dir.c_str(), "tmpfs", 0,
                               (std::string("mode=0700,size=") + size).c_str()) == 0;
    if (!mounted) _exit(kSkipped);
    body();
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == kSkipped) GTEST_SKIP() << "nothing can be mounted here";
  EXPECT_EQ(WEXITSTATUS(status), 0) << "see above";
}

// Leaves no room on the file system of `dir`.
inline void FillDisk(const std::string& dir) {
  const int fd = open((dir + "/filler").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  const std::string page(4096, 'x');
  while (write(fd, page.data(), page.size()) > 0) {
  }
  close(fd);
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_SMALL_DISK_H_
