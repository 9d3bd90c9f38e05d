// The option string of a share of WSL, and the plugin's options that it becomes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "hostif/wsl/share.h"
#include "tests/support/status_matchers.h"

namespace virtbay::wsl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using ::virtbay::testing::StatusIs;
using enum absl::StatusCode;

TEST(Share, EveryOption) {
  ASSERT_OK_AND_ASSIGN(
      const ParsedShare parsed,
      ParseShare("c;swiotlb=0x10000000,67108864;vcpus=4;ro;metadata;case=dir;uid=1000;gid=1001;"
                 "default_uid=7;default_gid=8;mode=755;umask=022;fmask=222;dmask=0111;"
                 "symlinkroot=/mnt/;xattr=user.a=b=c;vm_id=872270E1-A899-4AF6-B454-7193634435AD"));
  EXPECT_THAT(parsed.warnings, IsEmpty());
  const Share& share = parsed.share;
  EXPECT_EQ(share.name, "c");
  EXPECT_EQ(share.device.swiotlb->base, 0x1000'0000u);
  EXPECT_EQ(share.device.vm_id, "872270E1-A899-4AF6-B454-7193634435AD");
  EXPECT_TRUE(share.readonly);
  EXPECT_TRUE(share.metadata);
  EXPECT_EQ(share.vcpus, 4u);
  EXPECT_EQ(share.case_sensitivity, "dir");
  EXPECT_EQ(share.uid, 1000u);
  EXPECT_EQ(share.gid, 1001u);
  EXPECT_EQ(share.default_uid, 7u);
  EXPECT_EQ(share.default_gid, 8u);
  EXPECT_EQ(share.mode, 0755u);
  EXPECT_EQ(share.umask, 0022u);
  EXPECT_EQ(share.fmask, 0222u);
  EXPECT_EQ(share.dmask, 0111u);
  EXPECT_EQ(share.symlinkroot, "/mnt/");
  EXPECT_EQ(share.xattr, std::make_pair(std::string("user.a"), std::string("b=c")));
  EXPECT_THAT(
      PluginOptions(share),
      UnorderedElementsAre(Pair("tag", "c"), Pair("readonly", "true"), Pair("metadata", "true"),
                           Pair("request-queues", "4"), Pair("case", "dir"), Pair("uid", "1000"),
                           Pair("gid", "1001"), Pair("default_uid", "7"), Pair("default_gid", "8"),
                           Pair("mode", "0755"), Pair("umask", "0022"), Pair("fmask", "0222"),
                           Pair("dmask", "0111"), Pair("symlinkroot", "/mnt/"),
                           Pair("xattr", "user.a=b=c")));
}

TEST(Share, NothingGivenIsNothingSaid) {
  ASSERT_OK_AND_ASSIGN(const ParsedShare parsed, ParseShare("data"));
  EXPECT_THAT(PluginOptions(parsed.share), UnorderedElementsAre(Pair("tag", "data")));
}

TEST(Share, TheFirstOfTwoCounts) {
  ASSERT_OK_AND_ASSIGN(const ParsedShare parsed, ParseShare("c;uid=1;uid=2;uid=x"));
  EXPECT_EQ(parsed.share.uid, 1u);
}

TEST(Share, OurOwnOptionForTheDirectory) {
  ASSERT_OK_AND_ASSIGN(const ParsedShare parsed, ParseShare("c;shared-dir=/srv/a=b"));
  EXPECT_EQ(parsed.share.shared_dir, "/srv/a=b");
  EXPECT_EQ(PluginOptions(parsed.share).at("shared-dir"), "/srv/a=b");
}

TEST(Share, QueuesAreOneToEight) {
  for (const auto& [text, queues] : {std::pair<const char*, uint32_t>{"c;vcpus=0", 1},
                                     {"c;vcpus=1", 1},
                                     {"c;vcpus=8", 8},
                                     {"c;vcpus=9", 8},
                                     {"c;vcpus=4294967295", 8}}) {
    ASSERT_OK_AND_ASSIGN(const ParsedShare parsed, ParseShare(text));
    EXPECT_EQ(parsed.share.vcpus, queues) << text;
  }
}

TEST(Share, WarnsOfWhatItIgnores) {
  ASSERT_OK_AND_ASSIGN(const ParsedShare parsed,
                       ParseShare("c;colour=red;noatime;fallback=9p;case=force;UID=5"));
  EXPECT_THAT(parsed.warnings,
              ElementsAre(HasSubstr("'colour'"), HasSubstr("'noatime'"), HasSubstr("'fallback'"),
                          HasSubstr("case=force"), HasSubstr("'UID'")));
  EXPECT_EQ(parsed.share.case_sensitivity, "dir");
  EXPECT_EQ(parsed.share.uid, std::nullopt);
}

TEST(Share, RefusesByName) {
  for (const auto& [text, reason] : {
           std::pair<const char*, const char*>{"c;uid=root", "uid: 'root'"},
           {"c;uid", "uid: needs a value"},
           {"c;uid=4294967295", "uid: "},
           {"c;gid=-1", "gid: '-1'"},
           {"c;umask=289", "umask: '289' is not an octal number up to 777"},
           {"c;fmask=1777", "fmask: "},
           {"c;mode=4755", "mode: "},
           {"c;dmask=", "dmask: needs a value"},
           {"c;ro=1", "ro: takes no value"},
           {"c;metadata=true", "metadata: takes no value"},
           {"c;case=on", "case: "},
           {"c;vcpus=many", "vcpus: 'many'"},
           {"c;xattr=user.a", "xattr: "},
           {"c;xattr==v", "xattr: "},
           {"c;swiotlb=lowmem", "swiotlb: 'lowmem'"},
           {"c;swiotlb=0x1000", "swiotlb: '0x1000'"},
           {"c;vm_id=1", "vm_id: '1' is not a GUID"},
           {"c;shared-dir=", "shared-dir: needs a value"},
       }) {
    EXPECT_THAT(ParseShare(text), StatusIs(kInvalidArgument, reason)) << text;
  }
  EXPECT_THAT(ParseShare("c;sandbox"), StatusIs(kUnimplemented, "sandbox: "));
  EXPECT_THAT(ParseShare("c;sandbox_disallowed_extensions=exe,dll"), StatusIs(kUnimplemented));
}

}  // namespace
}  // namespace virtbay::wsl
