// The directory of --state-dir: whose it is, and of how many processes.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "hostif/device_host/state_directory.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay::device_host {
namespace {

using testing::StatusIs;
using testing::TempDir;

mode_t ModeOf(const std::filesystem::path& path) {
  struct stat st {};
  return lstat(path.c_str(), &st) == 0 ? st.st_mode & 07777 : 0;
}

TEST(StateDirectory, IsMadeForThisUserAlone) {
  const TempDir place;
  ASSERT_OK_AND_ASSIGN(const StateDirectory state, StateDirectory::Open(place / "state"));
  EXPECT_EQ(ModeOf(place / "state"), 0700u);
  EXPECT_EQ(ModeOf(place / "state/lock"), 0600u);
  ASSERT_OK_AND_ASSIGN(const std::filesystem::path device, state.ForDevice("fs0"));
  EXPECT_EQ(device, place / "state/device.fs0");
  EXPECT_EQ(ModeOf(device), 0700u);
  EXPECT_OK(state.ForDevice("fs0").status()) << "it is there";
}

TEST(StateDirectory, IsRefusedWhereOthersMayReadIt) {
  const TempDir place;
  std::filesystem::create_directory(place / "open");
  ASSERT_EQ(chmod((place / "open").c_str(), 0750), 0);
  EXPECT_THAT(StateDirectory::Open(place / "open").status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  {
    ASSERT_OK_AND_ASSIGN(const StateDirectory state, StateDirectory::Open(place / "state"));
    std::filesystem::create_directory(place / "state/device.fs0");
    ASSERT_EQ(chmod((place / "state/device.fs0").c_str(), 0755), 0);
    EXPECT_THAT(state.ForDevice("fs0").status(), StatusIs(absl::StatusCode::kFailedPrecondition));
  }
}

TEST(StateDirectory, FollowsNoLinks) {
  const TempDir place;
  std::filesystem::create_directory(place / "there");
  ASSERT_EQ(chmod((place / "there").c_str(), 0700), 0);
  std::filesystem::create_directory_symlink("there", place / "link");
  EXPECT_FALSE(StateDirectory::Open(place / "link").ok());
  place.Write("file", "");
  EXPECT_FALSE(StateDirectory::Open(place / "file").ok());
  std::filesystem::create_symlink("../file", place / "there/lock");
  EXPECT_FALSE(StateDirectory::Open(place / "there").ok());
  ASSERT_TRUE(std::filesystem::remove(place / "there/lock"));
  ASSERT_OK_AND_ASSIGN(const StateDirectory state, StateDirectory::Open(place / "there"));
  std::filesystem::create_directory_symlink("..", place / "there/device.fs0");
  EXPECT_FALSE(state.ForDevice("fs0").ok());
}

TEST(StateDirectory, IsOneProcessesAtATime) {
  const TempDir place;
  {
    ASSERT_OK_AND_ASSIGN(const StateDirectory state, StateDirectory::Open(place / "state"));
    EXPECT_THAT(StateDirectory::Open(place / "state", absl::ZeroDuration()).status(),
                StatusIs(absl::StatusCode::kUnavailable));
  }
  EXPECT_OK(StateDirectory::Open(place / "state", absl::ZeroDuration()).status());
}

}  // namespace
}  // namespace virtbay::device_host
