#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "framework/plugin/plugin.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::IsOkAndHolds;
using ::virtbay::testing::StatusIs;
using ::virtbay::testing::TempDir;

TEST(FindPlugin, LooksInTheDirectoriesInOrder) {
  const TempDir a;
  const TempDir b;
  const auto in_a = a.Write("one.so", "");
  b.Write("one.so", "");
  const auto only_b = b.Write("two.so", "");
  const PluginSearch search{{a.path(), "/nowhere", b.path()}};
  EXPECT_THAT(FindPlugin("one", search), IsOkAndHolds(in_a));
  EXPECT_THAT(FindPlugin("two", search), IsOkAndHolds(only_b));
  EXPECT_THAT(FindPlugin("two.so", search), IsOkAndHolds(only_b));
  const auto missing = FindPlugin("three", search);
  EXPECT_THAT(missing, StatusIs(absl::StatusCode::kNotFound, "plugin three: no three.so in "));
  EXPECT_THAT(missing.status().message(), HasSubstr(a.path().native() + ", /nowhere, "));
}

TEST(FindPlugin, ASlashMakesItAPath) {
  const TempDir dir;
  const auto file = dir.Write("one.so", "");
  const PluginSearch search{{dir.path()}};
  EXPECT_THAT(FindPlugin(file.native(), {}), IsOkAndHolds(file));
  EXPECT_THAT(FindPlugin("./one.so", search), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(FindPlugin("../one", search), StatusIs(absl::StatusCode::kNotFound));
}

TEST(FindPlugin, OddNames) {
  const PluginSearch search{{"/nowhere"}};
  EXPECT_THAT(FindPlugin("", search), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(FindPlugin(absl::string_view("a\0b", 3), search),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(FindPlugin("..", search), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(FindPlugin(std::string(5000, 'x'), search), StatusIs(absl::StatusCode::kNotFound));
}

TEST(PluginSearch, EnvironmentThenExtraThenBuiltIn) {
  setenv("VIRTBAY_PLUGIN_PATH", "/first::/second:", 1);
  const PluginSearch search = PluginSearch::FromEnvironment({"/extra"});
  unsetenv("VIRTBAY_PLUGIN_PATH");
  ASSERT_EQ(search.directories.size(), 5u);
  EXPECT_EQ(search.directories[0], "/first");
  EXPECT_EQ(search.directories[1], "/second");
  EXPECT_EQ(search.directories[2], "/extra");
  // This program is in the build tree, so that tree's plugins are found.
  EXPECT_EQ(search.directories[3].filename(), "plugins");
  EXPECT_TRUE(search.directories[4].is_absolute());
  EXPECT_THAT(search.directories[4].native(), HasSubstr("virtbay/plugins"));

  EXPECT_EQ(PluginSearch::FromEnvironment().directories.size(), 2u);
  // Named once, however often it is given.
  EXPECT_EQ(
      PluginSearch::FromEnvironment({"/extra", search.directories[3], "/extra"}).directories.size(),
      3u);
  EXPECT_THAT(FindPlugin("virtio-rng", PluginSearch::FromEnvironment()),
              IsOkAndHolds(std::filesystem::path(VIRTBAY_RNG_PLUGIN)));
}

}  // namespace
}  // namespace virtbay
