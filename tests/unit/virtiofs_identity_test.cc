// How a queue thread becomes a user of the guest and comes back, and what it says when it cannot;
// with system calls that do nothing, so no privilege is needed.
#include <unistd.h>

#include <array>
#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "plugins/virtiofs/credentials.h"

namespace virtbay::virtiofs {
namespace {

// What was called, and from which call on (counted from 0) they fail. A variable, because the table
// of calls has no room for an object.
struct Script {
  std::vector<std::string> calls;
  size_t fails_at = SIZE_MAX;
  size_t fails_until = SIZE_MAX;
};
thread_local Script script;

long Call(std::string what) {
  const size_t at = script.calls.size();
  script.calls.push_back(std::move(what));
  if (at < script.fails_at || at >= script.fails_until) return 0;
  errno = EPERM;
  return -1;
}

constexpr ThreadIdentity::Calls kScripted = {
    [](uint32_t user) { return Call("user " + std::to_string(user)); },
    [](uint32_t group) { return Call("group " + std::to_string(group)); },
    [](size_t count, const gid_t* /*groups*/) { return Call("groups " + std::to_string(count)); },
    [](void* /*header*/, const void* /*data*/) { return Call("capabilities"); },
};

class VirtioFsIdentity : public ::testing::Test {
 protected:
  void SetUp() override {
    script = {};
    // Not Bind: it gives the thread a umask and a directory of its own, and there is no going back.
    identity_.emplace(&kScripted);
  }
  void Fail(size_t from, size_t until = SIZE_MAX) {
    script.calls.clear();
    script.fails_at = from;
    script.fails_until = until;
  }
  // The object takes itself for user 0 and group 0 until it is bound.
  int Become() { return identity_->Become(1000, 1001, std::array<uint32_t, 2>{5, 6}, false); }

  std::optional<ThreadIdentity> identity_;
};

using Names = std::vector<std::string>;

TEST_F(VirtioFsIdentity, ThereAndBack) {
  EXPECT_EQ(Become(), 0);
  EXPECT_EQ(script.calls, (Names{"group 1001", "groups 2", "user 1000"}));
  script.calls.clear();
  EXPECT_TRUE(identity_->Restore());
  EXPECT_EQ(script.calls, (Names{"user 0", "group 0", "groups 0"}));
  script.calls.clear();
  EXPECT_TRUE(identity_->Restore()) << "there is nothing left to do";
  EXPECT_TRUE(script.calls.empty());
}

TEST_F(VirtioFsIdentity, WhoeverCannotBecomeAnotherIsItselfAgain) {
  for (size_t at = 0; at < 3; ++at) {
    Fail(at, at + 1);
    EXPECT_EQ(Become(), EPERM) << at;
    EXPECT_EQ(script.calls.size(), 2 * at + 1) << "each step that was taken is taken back";
    script.calls.clear();
    EXPECT_TRUE(identity_->Restore());
    EXPECT_TRUE(script.calls.empty());
  }
}

TEST_F(VirtioFsIdentity, FailingThereAndBackIsNotToBeMended) {
  for (const size_t at : {size_t{1}, size_t{2}}) {
    Fail(at);
    EXPECT_EQ(Become(), ENOTRECOVERABLE) << at;
    Fail(SIZE_MAX);
    EXPECT_TRUE(identity_->Restore());
  }
}

TEST_F(VirtioFsIdentity, EveryStepOfTheWayBackMayFail) {
  for (size_t at = 0; at < 3; ++at) {
    Fail(SIZE_MAX);
    ASSERT_EQ(Become(), 0);
    Fail(at);
    EXPECT_FALSE(identity_->Restore()) << at;
    EXPECT_FALSE(identity_->Restore()) << "and stays so";
    Fail(SIZE_MAX);
    EXPECT_TRUE(identity_->Restore());
  }
}

}  // namespace
}  // namespace virtbay::virtiofs
