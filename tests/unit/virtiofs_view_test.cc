// The parts of a share's view by themselves: maps of ids, metadata texts, options, inode numbers,
// letters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "plugins/virtiofs/fold.h"
#include "plugins/virtiofs/id_map.h"
#include "plugins/virtiofs/ino_space.h"
#include "plugins/virtiofs/metadata.h"
#include "plugins/virtiofs/share_options.h"

namespace virtbay::virtiofs {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(std::string_view map) {
  const auto result = IdMap::Parse(map);
  return result.ok() ? "" : result.error().text;
}

// "forbidden" or the number.
std::string ToHost(IdMap& map, uint32_t guest) {
  uint32_t host = 0;
  return map.ToHost(guest, &host) ? std::to_string(host) : "forbidden";
}

TEST(VirtioFsIdMap, Ranges) {
  auto parsed = IdMap::Parse(
      "map:10:100:5,guest:1000:2000:2,host:50:60:3,squash-guest:20:7:10,squash-host:300:8:10,"
      "forbid-guest:40:2");
  ASSERT_TRUE(parsed.ok()) << parsed.error().text;
  IdMap& map = *parsed;
  EXPECT_EQ(ToHost(map, 9), "9");
  EXPECT_EQ(ToHost(map, 10), "100");
  EXPECT_EQ(ToHost(map, 14), "104");
  EXPECT_EQ(ToHost(map, 15), "15");
  EXPECT_EQ(ToHost(map, 1001), "2001");
  EXPECT_EQ(ToHost(map, 29), "7");
  EXPECT_EQ(ToHost(map, 30), "30");
  EXPECT_EQ(ToHost(map, 39), "39");
  EXPECT_EQ(ToHost(map, 40), "forbidden");
  EXPECT_EQ(ToHost(map, 41), "forbidden");
  EXPECT_EQ(ToHost(map, 42), "42");
  EXPECT_EQ(map.ToGuest(104), 14u);
  EXPECT_EQ(map.ToGuest(105), 105u);
  EXPECT_EQ(map.ToGuest(2000), 2000u) << "one direction only";
  EXPECT_EQ(map.ToGuest(52), 62u);
  EXPECT_EQ(map.ToGuest(309), 8u);
  EXPECT_EQ(map.ToGuest(310), 310u);
}

TEST(VirtioFsIdMap, TheWholeRange) {
  auto all = IdMap::Parse("squash-guest:0:1000:4294967295");
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(ToHost(*all, 0), "1000");
  EXPECT_EQ(ToHost(*all, 4294967294u), "1000");
  EXPECT_EQ(ErrorOf("map:0:1:4294967294"), "");
  EXPECT_THAT(ErrorOf("map:0:1:4294967295"), HasSubstr("beyond"));
  EXPECT_THAT(ErrorOf("map:1:0:4294967295"), HasSubstr("beyond"));
  EXPECT_THAT(ErrorOf("squash-guest:0:4294967295:1"), HasSubstr("beyond"));
  auto none = IdMap::Parse("");
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->empty());
}

TEST(VirtioFsIdMap, MeetingRangesAreRefused) {
  EXPECT_EQ(ErrorOf("guest:0:0:10,guest:10:0:10,guest:20:0:1"), "");
  for (const char* second :
       {"guest:9:0:1", "guest:0:0:1", "forbid-guest:5:1", "squash-guest:0:1:99", "map:9:100:1"}) {
    EXPECT_THAT(ErrorOf(std::string("guest:0:0:10,") + second), HasSubstr("meets")) << second;
  }
  EXPECT_THAT(ErrorOf("host:5:0:2,map:100:6:1"), HasSubstr("host's"));
  EXPECT_EQ(ErrorOf("host:5:0:2,guest:5:0:2"), "") << "each direction by itself";
}

TEST(VirtioFsIdMap, BadEntriesAreNamed) {
  for (const char* bad :
       {"map", "map:1:2", "map:1:2:3:4", "map:1:2:x", "map:-1:2:3", "map:1:2: 3", "host::1:1",
        "forbid-guest:1:2:3", "forbid-guest:1", "forbid-host:1:2", "1:2:3", ":1:2:3", "map:1:2:0",
        "forbid-guest:1:0", "map:4294967296:0:1"}) {
    EXPECT_THAT(ErrorOf(bad), HasSubstr(bad));
    EXPECT_NE(ErrorOf(std::string("map:9:9:1,") + bad), "");
  }
  EXPECT_NE(ErrorOf("map:0:0:1,,map:5:5:1"), "");
}

TEST(VirtioFsMetadataText, ThereAndBack) {
  Metadata::Text text;
  Metadata m;
  EXPECT_TRUE(m.empty());
  EXPECT_EQ(m.Format(&text), "");
  EXPECT_EQ(Metadata::Parse("", false), m);
  m.uid = 0;
  m.gid = 4294967294u;
  m.mode = 0104755;
  EXPECT_EQ(m.Format(&text), "uid=0,gid=4294967294,mode=0104755");
  EXPECT_EQ(Metadata::Parse(m.Format(&text), false), m);
  m.mode = 0067777;
  m.major = m.minor = 4294967295u;
  m.uid = 4294967294u;
  EXPECT_EQ(Metadata::Parse(m.Format(&text), false), m) << "the longest";
  EXPECT_EQ(Metadata::Parse(m.Format(&text), true), std::nullopt) << "a directory is nothing else";
  m = {};
  m.mode = 0040700;
  EXPECT_EQ(Metadata::Parse(m.Format(&text), true), m);
  EXPECT_EQ(Metadata::Parse(m.Format(&text), false), std::nullopt);
}

TEST(VirtioFsShareOptions, ListGivesWhatWasSet) {
  const std::vector<ShareOptions::KeyValue> given = {{"case", "off"},
                                                     {"default_gid", "1"},
                                                     {"default_uid", "2"},
                                                     {"dmask", "022"},
                                                     {"fmask", "133"},
                                                     {"gid", "3"},
                                                     {"metadata", "true"},
                                                     {"mode", "750"},
                                                     {"readonly", "true"},
                                                     {"symlinkroot", "/mnt"},
                                                     {"translate-gid", "map:0:1:1"},
                                                     {"translate-uid", "map:0:2:1"},
                                                     {"uid", "4"},
                                                     {"umask", "007"},
                                                     {"xattr", "user.a=b"}};
  ShareOptions forward, backward;
  EXPECT_TRUE(forward.List().empty());
  EXPECT_TRUE(forward.plain());
  for (const auto& [key, value] : given) {
    EXPECT_TRUE(ShareOptions::Knows(key)) << key;
    EXPECT_TRUE(forward.Set(key, value).ok()) << key;
  }
  EXPECT_EQ(forward.List(), given);
  EXPECT_FALSE(forward.plain());
  for (auto it = given.rbegin(); it != given.rend(); ++it) {
    EXPECT_TRUE(backward.Set(it->first, it->second).ok());
  }
  EXPECT_EQ(forward, backward);
  EXPECT_TRUE(backward.Set("ro", "false").ok());
  EXPECT_NE(forward, backward);
  EXPECT_FALSE(ShareOptions::Knows("cache"));
  EXPECT_TRUE(ShareOptions::Knows("default-uid"));
}

TEST(VirtioFsShareOptions, WhatLeavesAttributesAlone) {
  for (const auto& [key, value] : {std::pair{"readonly", ""},
                                   {"case", "off"},
                                   {"xattr", "user.a=b"},
                                   {"symlinkroot", "/"},
                                   {"umask", "000"},
                                   {"translate-uid", ""}}) {
    ShareOptions options;
    ASSERT_TRUE(options.Set(key, value).ok()) << key;
    EXPECT_TRUE(options.plain()) << key;
  }
}

TEST(VirtioFsInoSpace, PrefixesAreOneForOne) {
  InoSpace space;
  constexpr uint64_t kHigh = uint64_t{1} << InoSpace::kLowBits;
  std::set<uint64_t> prefixes;
  for (uint32_t share = 1; share <= 40; ++share) {
    for (uint64_t dev = 0; dev < 5; ++dev) {
      for (uint64_t high = 0; high < 5; ++high) {
        const uint64_t prefix = space.Prefix(share, dev, high * kHigh + 77);
        EXPECT_EQ(prefix & (kHigh - 1), 0u);
        EXPECT_GE(prefix, InoSpace::kFirst);
        EXPECT_TRUE(prefixes.insert(prefix).second);
        EXPECT_EQ(space.Prefix(share, dev, high * kHigh + 78), prefix);
      }
    }
  }
  EXPECT_EQ(space.used(), 1000u);
  space.Release(7);
  EXPECT_EQ(space.used(), 975u);
  // Used again, and by nobody twice.
  for (uint64_t dev = 0; dev < 25; ++dev) space.Prefix(100, dev, UINT64_MAX);
  EXPECT_EQ(space.used(), 1000u);
  EXPECT_TRUE(prefixes.contains(space.Prefix(100, 3, UINT64_MAX)));
}

TEST(VirtioFsCaseFolder, Letters) {
  const CaseFolder folder;
  EXPECT_TRUE(folder.Same("", ""));
  EXPECT_TRUE(folder.Same("aZ0-_.", "Az0-_."));
  EXPECT_FALSE(folder.Same("a", ""));
  EXPECT_FALSE(folder.Same("@", "`")) << "no letters, although 32 apart";
  EXPECT_FALSE(folder.Same("[", "{"));
  ASSERT_TRUE(folder.unicode()) << "the locale C.UTF-8 is part of glibc";
  EXPECT_TRUE(folder.Same("\xc3\xa9", "\xc3\x89"));  // é É
  EXPECT_TRUE(folder.Same("\xcf\x83", "\xcf\x82"));  // both are forms of Σ
  EXPECT_FALSE(folder.Same("\xc3\xa9", "e"));
}

}  // namespace
}  // namespace virtbay::virtiofs
