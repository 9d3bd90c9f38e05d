// Options of the virtiofs plugin, by themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plugins/virtiofs/options.h"

namespace virtbay::virtiofs {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

sdk::Result<Options> Parse(std::vector<Options::KeyValue> given) {
  given.emplace_back("shared-dir", "/srv");
  return Options::Parse(given);
}

std::string ErrorOf(std::vector<Options::KeyValue> given) {
  const auto result = Parse(std::move(given));
  return result.ok() ? "" : result.error().text;
}

TEST(VirtioFsOptionsTest, Defaults) {
  auto o = Parse({});
  ASSERT_TRUE(o.ok());
  EXPECT_EQ(o->tag, "virtiofs");
  EXPECT_EQ(o->cache, CachePolicy::kAuto);
  EXPECT_EQ(o->attr_timeout_ns, 1'000'000'000u);
  EXPECT_EQ(o->entry_timeout_ns, 1'000'000'000u);
  EXPECT_EQ(o->negative_timeout_ns, 0u);
  EXPECT_TRUE(o->readdirplus);
  EXPECT_TRUE(o->announce_submounts);
  EXPECT_FALSE(o->readonly || o->writeback || o->xattr || o->posix_acl || o->killpriv_v2);
  EXPECT_EQ(o->request_queues, 1u);
  EXPECT_EQ(o->max_write, 1u << 20);
}

TEST(VirtioFsOptionsTest, Booleans) {
  for (const char* yes : {"", "1", "true", "yes", "on"}) {
    auto o = Parse({{"readonly", yes}});
    ASSERT_TRUE(o.ok());
    EXPECT_TRUE(o->readonly) << yes;
  }
  for (const char* no : {"0", "false", "no", "off"}) {
    auto o = Parse({{"readdirplus", no}});
    ASSERT_TRUE(o.ok());
    EXPECT_FALSE(o->readdirplus) << no;
  }
  EXPECT_THAT(ErrorOf({{"writeback", "maybe"}}), AllOf(HasSubstr("writeback"), HasSubstr("maybe")));
}

TEST(VirtioFsOptionsTest, PoliciesAndTimeouts) {
  EXPECT_EQ(Parse({{"cache", "never"}})->attr_timeout_ns, 0u);
  EXPECT_EQ(Parse({{"cache", "always"}})->entry_timeout_ns, 86400 * uint64_t{1'000'000'000});
  EXPECT_EQ(Parse({{"cache", "metadata"}})->attr_timeout_ns, 86400 * uint64_t{1'000'000'000});
  // An explicit timeout wins, wherever it stands.
  EXPECT_EQ(Parse({{"attr-timeout", "0.25"}, {"cache", "always"}})->attr_timeout_ns, 250'000'000u);
  EXPECT_THAT(ErrorOf({{"cache", "sometimes"}}), HasSubstr("sometimes"));
  for (const char* bad : {"", "-1", "x", "1s", "nan", "inf", "1e3", "999999999999"}) {
    EXPECT_THAT(ErrorOf({{"entry-timeout", bad}}), HasSubstr("entry-timeout")) << bad;
  }
}

TEST(VirtioFsOptionsTest, Numbers) {
  EXPECT_EQ(Parse({{"request-queues", "8"}})->request_queues, 8u);
  // As many as the guest has CPUs, at most four, unless a number is given.
  for (const auto& [vcpus, queues] : {std::pair{"1", 1u}, {"3", 3u}, {"4", 4u}, {"64", 4u}}) {
    EXPECT_EQ(Parse({{"vcpus", vcpus}})->request_queues, queues) << vcpus;
    EXPECT_EQ(Parse({{"vcpus", vcpus}, {"request-queues", "6"}})->request_queues, 6u);
  }
  EXPECT_THAT(ErrorOf({{"vcpus", "0"}}), HasSubstr("vcpus"));
  EXPECT_EQ(Parse({{"max-write", "10000"}})->max_write, 8192u);
  for (const char* bad : {"0", "9", "-1", "", "2x", "4294967297"}) {
    EXPECT_THAT(ErrorOf({{"request-queues", bad}}), HasSubstr("request-queues")) << bad;
  }
  EXPECT_THAT(ErrorOf({{"max-write", "4095"}}), HasSubstr("max-write"));
  EXPECT_THAT(ErrorOf({{"max-write", "1048577"}}), HasSubstr("max-write"));
}

TEST(VirtioFsOptionsTest, EveryOptionThatIsDeclaredIsKnown) {
  for (const virtbay_option& option : kOptionList) {
    // Nothing that any of them takes, but for a directory's name.
    const std::string error = ErrorOf({{option.name, std::string(40, '?')}});
    EXPECT_THAT(error, Not(HasSubstr("no such option"))) << option.name;
    if (option.name != std::string("shared-dir")) {
      EXPECT_EQ(error.rfind(std::string("option ") + option.name + ": ", 0), 0u) << error;
    }
  }
  EXPECT_EQ(ErrorOf({{"colour", "red"}}), "option colour: there is no such option");
}

TEST(VirtioFsOptionsTest, KeysAndTags) {
  EXPECT_THAT(ErrorOf({{"readonyl", ""}}), HasSubstr("readonyl"));
  EXPECT_EQ(ErrorOf({{"host.socket", "/run/x"}}), "");
  EXPECT_THAT(ErrorOf({{"tag", ""}}), HasSubstr("tag"));
  EXPECT_EQ(ErrorOf({{"tag", std::string(36, 't')}}), "");
  EXPECT_THAT(ErrorOf({{"tag", std::string(37, 't')}}), HasSubstr("tag"));
  EXPECT_TRUE(Parse({{"posix-acl", ""}})->xattr);
  EXPECT_FALSE(Options::Parse({}).ok());
}

}  // namespace
}  // namespace virtbay::virtiofs
