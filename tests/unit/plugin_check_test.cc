// The conformance suite: each clause fails with a plugin that breaks it, and with none that does
// not; nothing that a plugin does keeps the suite from its end.
#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <map>
#include <ostream>
#include <utility>
#include <vector>

#include "framework/base/sanitized.h"
#include "hostif/testkit/check.h"
#include "tests/support/temp_dir.h"

namespace virtbay::testkit {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::TempDir;

std::map<std::string, ClauseResult> Check(const std::filesystem::path& file,
                                          std::map<std::string, std::string> options = {},
                                          std::vector<std::string> only = {}, int limit = 60) {
  CheckOptions how;
  how.only = std::move(only);
  how.file = file;
  how.options = std::move(options);
  how.limit = absl::Seconds(limit);
  std::map<std::string, ClauseResult> results;
  size_t told = 0;
  for (ClauseResult& result : CheckPlugin(how, [&](const ClauseResult&) { ++told; })) {
    results[result.clause] = std::move(result);
  }
  EXPECT_EQ(told, how.only.empty() ? Clauses().size() : how.only.size());
  EXPECT_EQ(results.size(), told);
  return results;
}
std::string Bad(const std::string& name) {
  return std::string(VIRTBAY_BAD_PLUGIN_DIR) + "/" + name + ".so";
}
std::string Failures(const std::map<std::string, ClauseResult>& results) {
  std::string failures;
  for (const auto& [clause, result] : results) {
    if (result.verdict == Verdict::kFail) failures += clause + ": " + result.text + "\n";
  }
  return failures;
}

struct Broken {
  const char* plugin;
  const char* clause;
  const char* text;
  int limit = 40;  // seconds
};
std::ostream& operator<<(std::ostream& out, const Broken& broken) { return out << broken.plugin; }

class BrokenPluginTest : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenPluginTest, FailsItsClause) {
  // What the one that hangs waits for.
  const TempDir dir;
  ASSERT_EQ(mkfifo((dir / "release").c_str(), 0600), 0);
  setenv("VIRTBAY_TEST_RELEASE", (dir / "release").c_str(), 1);
  const auto results = Check(Bad(GetParam().plugin), {}, {GetParam().clause}, GetParam().limit);
  const ClauseResult& result = results.at(GetParam().clause);
  if (kSanitized && result.verdict == Verdict::kSkip) GTEST_SKIP() << result.text;
  EXPECT_EQ(result.verdict, Verdict::kFail) << Failures(results);
  EXPECT_THAT(result.text, HasSubstr(GetParam().text));
}

INSTANTIATE_TEST_SUITE_P(
    All, BrokenPluginTest,
    ::testing::Values(
        Broken{"no_symbol", "abi", "virtbay_plugin_entry"}, Broken{"wrong_magic", "abi", "magic"},
        Broken{"newer_major", "abi", "built for"}, Broken{"older_major", "abi", "built for"},
        Broken{"smaller_struct", "abi", "struct_size"},
        Broken{"name_not_terminated", "abi", "name"}, Broken{"unique_symbols", "exports", "UNIQUE"},
        Broken{"load_fails", "load", "load()"}, Broken{"load_throws", "load", "from load"},
        Broken{"load_starts_thread", "load", "starts a thread"},
        Broken{"missing_dependency", "load", ""}, Broken{"null_factory", "load", "factory"},
        Broken{"type_name_twice", "load", ""}, Broken{"options_endless", "load", "option"},
        Broken{"leaks_thread_local", "unload", "still mapped"},
        Broken{"create_fails", "create", "no such directory"},
        Broken{"create_throws", "create", "threw"},
        Broken{"ops_incomplete", "create", "on_requests"},
        Broken{"init_fails", "create", "no such directory"},
        Broken{"init_crashes", "create", "ended by SIGABRT in: making a device"},
        Broken{"init_exits", "create", "the process ended with status 0 in: making a device"},
        Broken{"init_hangs", "create", "does not come back from: making a device", 3},
        Broken{"no_queues", "create", "0 queues"}, Broken{"views_too_large", "create", "views"},
        Broken{"negotiate_fails", "create", "not with me"},
        Broken{"start_fails", "create", "not today"},
        Broken{"config_partly_refused", "config", "reading a part"},
        Broken{"completes_twice", "requests", "ended twice"},
        Broken{"completes_late", "requests", "ended twice"},
        Broken{"lies_about_written", "requests", "sizes that lie"},
        Broken{"wrong_thread", "requests", "does not serve"},
        Broken{"throws_in_on_requests", "requests", "exception: from OnRequests"},
        Broken{"throws_raw_in_on_requests", "requests", "threw"},
        Broken{"never_completes", "quiesce", "did not end within"},
        Broken{"holds_at_quiesce", "quiesce", "did not end within"},
        Broken{"stuck_in_on_requests", "requests", "stopping queue 0"},
        Broken{"state_refuses_its_own", "state", "restore"},
        Broken{"state_trusts_its_bytes", "state", "in: restore of a state that is wrong"},
        Broken{"leaks_thread", "threads", "threads more"},
        Broken{"leaks_descriptor", "descriptors", "descriptors more"},
        Broken{"leaks_memory", "memory", "bytes more"}),
    [](const auto& broken) { return std::string(broken.param.plugin); });

TEST(PluginCheckTest, CorrectPluginsPass) {
  for (const char* plugin : {"correct", "state_correct", "newer_minor", "larger_struct"}) {
    EXPECT_EQ(Failures(Check(Bad(plugin))), "") << plugin;
  }
  EXPECT_EQ(Check(Bad("state_correct")).at("state").verdict, Verdict::kPass);
  EXPECT_EQ(Check(Bad("correct")).at("state").verdict, Verdict::kSkip);
}

TEST(PluginCheckTest, TheDevicesOfThisRepositoryPass) {
  const TempDir dir;
  const std::string disk = dir.Write("disk", std::string(4 << 20, 'd'));
  for (const char* share : {"share", "share9"}) std::filesystem::create_directory(dir / share);
  EXPECT_EQ(Failures(Check(VIRTBAY_RNG_PLUGIN)), "");
  EXPECT_EQ(Failures(Check(VIRTBAY_CONSOLE_PLUGIN)), "");
  EXPECT_EQ(Failures(Check(VIRTBAY_BLK_PLUGIN, {{"file", disk}})), "");
  EXPECT_EQ(Failures(Check(VIRTBAY_9P_PLUGIN, {{"shared-dir", dir / "share9"}})), "");
  EXPECT_EQ(Failures(Check(VIRTBAY_VIRTIOFS_PLUGIN, {{"shared-dir", dir / "share"}})), "");
  EXPECT_EQ(Failures(Check(VIRTBAY_NET_PLUGIN, {{"backend", "loop"}})), "");
}

TEST(PluginCheckTest, WhatIsMissingIsSaid) {
  // One failure keeps the clauses behind it from running.
  EXPECT_EQ(Check(Bad("init_crashes")).at("requests").verdict, Verdict::kSkip);
  const TempDir dir;
  const auto none = Check(dir / "none.so");
  EXPECT_EQ(none.at("abi").verdict, Verdict::kFail);
  EXPECT_EQ(none.at("load").verdict, Verdict::kSkip);
  EXPECT_EQ(none.at("create").verdict, Verdict::kSkip);
  // Without its options: said once, by the clause that makes a device.
  const auto blk = Check(VIRTBAY_BLK_PLUGIN);
  EXPECT_THAT(blk.at("create").text, HasSubstr("option file: missing"));
  EXPECT_EQ(blk.at("requests").verdict, Verdict::kSkip);
  if (!kSanitized) {  // where images stay mapped
    EXPECT_EQ(blk.at("unload").verdict, blk.at("load").verdict);
  }
}

}  // namespace
}  // namespace virtbay::testkit
