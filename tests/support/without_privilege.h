// WithoutPrivilege: runs part of a test in a process that has no privilege, a child of this one.
// Stateless; called while this process has one thread.
#ifndef VIRTBAY_TESTS_SUPPORT_WITHOUT_PRIVILEGE_H_
#define VIRTBAY_TESTS_SUPPORT_WITHOUT_PRIVILEGE_H_

#include <grp.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace virtbay::testing {

// The failures of `body` are the test's. `needed`: a file that it has to be able to read.
template <typename Body>
void WithoutPrivilege(const char* needed, Body&& body) {
  constexpr int kSkipped = 77;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    const bool dropped = geteuid() != 0 ||
                         (setgroups(0, nullptr) == 0 && setresgid(kNobody, kNobody, kNobody) == 0 &&
                          setresuid(kNobody, kNobody, kNobody) == 0);
    if (!dropped || access(needed, R_OK) != 0) _exit(kSkipped);
    prctl(PR_SET_DUMPABLE, 1);
    body();
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == kSkipped) GTEST_SKIP() << "nobody cannot read " << needed;
  EXPECT_EQ(WEXITSTATUS(status), 0) << "see above";
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_WITHOUT_PRIVILEGE_H_
