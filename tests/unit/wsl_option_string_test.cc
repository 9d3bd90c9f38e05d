// The grammar of WSL's option strings, and the values that stand in them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "hostif/wsl/device_options.h"
#include "hostif/wsl/option_string.h"
#include "tests/support/status_matchers.h"

namespace virtbay::wsl {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::IsOkAndHolds;
using ::virtbay::testing::StatusIs;
using enum absl::StatusCode;

Option With(const char* key, const char* value) { return {key, std::string(value)}; }

std::string Text(const OptionString& string) {
  std::string out = string.name;
  for (const Option& option : string.options) {
    absl::StrAppend(&out, "|", option.key, option.value.has_value() ? "=" : "",
                    option.value.value_or(""));
  }
  return out;
}

TEST(OptionString, FollowsTheGrammar) {
  for (const auto& [text, expected] : {
           std::pair<const char*, const char*>{"drvfs", "drvfs"},
           {"drvfs;", "drvfs"},
           {"c;ro", "c|ro"},
           {"c;uid=1000;gid=1000", "c|uid=1000|gid=1000"},
           {"c;;;uid=1;;", "c|uid=1"},
           {"c;uid=1;uid=2", "c|uid=1"},
           {"c;ro;ro=1", "c|ro"},
           {"c;xattr=user.a=b=c", "c|xattr=user.a=b=c"},
           {"c;symlinkroot=", "c|symlinkroot="},
           {"c; uid=1", "c| uid=1"},
           {"a=b;c=d", "a=b|c=d"},
       }) {
    const auto string = ParseOptionString(text);
    ASSERT_OK(string) << text;
    EXPECT_EQ(Text(*string), expected) << text;
  }
}

TEST(OptionString, RefusesWhatIsNone) {
  EXPECT_THAT(ParseOptionString(""), StatusIs(kInvalidArgument, "no name"));
  EXPECT_THAT(ParseOptionString(";ro"), StatusIs(kInvalidArgument, "no name"));
  EXPECT_THAT(ParseOptionString("c;=1"), StatusIs(kInvalidArgument, "key is empty"));
  EXPECT_THAT(ParseOptionString(absl::string_view("c;r\0o", 5)), StatusIs(kInvalidArgument, "NUL"));
  EXPECT_THAT(ParseOptionString(std::string(kMaxOptionString + 1, 'x')),
              StatusIs(kInvalidArgument, "longer than"));
  std::string many = "c";
  for (size_t i = 0; i < kMaxOptions; ++i) absl::StrAppend(&many, ";k", i);
  EXPECT_OK(ParseOptionString(many));
  EXPECT_THAT(ParseOptionString(many + ";more"), StatusIs(kInvalidArgument, "more than"));
}

TEST(OptionString, Values) {
  EXPECT_OK(CheckFlag({"ro", std::nullopt}));
  EXPECT_THAT(CheckFlag(With("ro", "")), StatusIs(kInvalidArgument, "ro: takes no value"));
  EXPECT_THAT(TextOf({"a", std::nullopt}), StatusIs(kInvalidArgument, "a: needs a value"));
  EXPECT_THAT(TextOf(With("a", "")), StatusIs(kInvalidArgument));
  EXPECT_THAT(NumberOf(With("uid", "1000"), 4000), IsOkAndHolds(1000u));
  EXPECT_THAT(NumberOf(With("uid", "4294967295"), UINT32_MAX), IsOkAndHolds(UINT32_MAX));
  for (const char* text : {"4001", "-1", "+1", " 1", "1 ", "0x10", "1.0", "x",
                           "18446744073709551616", "99999999999999999999999"}) {
    EXPECT_THAT(NumberOf(With("uid", text), 4000), StatusIs(kInvalidArgument)) << text;
  }
}

TEST(OptionString, PermissionsAreOctal) {
  for (const auto& [text, bits] : {std::pair<const char*, uint32_t>{"222", 0222},
                                   {"022", 0022},
                                   {"22", 0022},
                                   {"0", 0},
                                   {"000", 0},
                                   {"777", 0777},
                                   {"0777", 0777},
                                   {"00000777", 0777},
                                   {"111", 0111}}) {
    EXPECT_THAT(PermissionsOf(With("fmask", text)), IsOkAndHolds(bits)) << text;
  }
  for (const char* text : {"", "8", "228", "0o22", "0x12", "1000", "1777", "-1", " 22", "22 ",
                           "rwx", "40000000000", "77777777777777777777777"}) {
    EXPECT_THAT(PermissionsOf(With("fmask", text)), StatusIs(kInvalidArgument, "fmask: ")) << text;
  }
}

TEST(OptionString, Guids) {
  constexpr char kGuid[] = "872270E1-A899-4AF6-b454-7193634435ad";
  EXPECT_THAT(GuidOf(With("vm_id", kGuid)), IsOkAndHolds(std::string(kGuid)));
  EXPECT_THAT(GuidOf(With("vm_id", "{872270E1-A899-4AF6-b454-7193634435ad}")),
              IsOkAndHolds(std::string(kGuid)));
  for (const char* text :
       {"", "x", "{}", "872270E1-A899-4AF6-b454-7193634435a",
        "872270E1-A899-4AF6-b454-7193634435adf", "872270E1AA899A4AF6Ab454A7193634435ad",
        "872270E1-A899-4AF6-b454-7193634435ag", "{872270E1-A899-4AF6-b454-7193634435ad",
        "872270E1-A899-4AF6-b454-7193634435ad}"}) {
    EXPECT_THAT(GuidOf(With("vm_id", text)), StatusIs(kInvalidArgument)) << text;
  }
}

TEST(DeviceOptions, TakesThePoolAndTheMachine) {
  DeviceOptions options;
  EXPECT_THAT(SetDeviceOption(With("swiotlb", "0x10000000,67108864"), &options),
              IsOkAndHolds(true));
  EXPECT_EQ(options.swiotlb->base, 0x1000'0000u);
  EXPECT_EQ(options.swiotlb->size, 64u << 20);
  EXPECT_THAT(SetDeviceOption(With("swiotlb", "0x100000000,64M"), &options), IsOkAndHolds(true));
  EXPECT_EQ(options.swiotlb->base, 0x1'0000'0000u) << "as the first hosts wrote it";
  EXPECT_THAT(SetDeviceOption(With("swiotlb", "lowmem"), &options),
              StatusIs(kInvalidArgument, "0xBASE,SIZE"));
  EXPECT_THAT(SetDeviceOption(With("swiotlb", "0x0,0"), &options), StatusIs(kInvalidArgument));
  EXPECT_THAT(SetDeviceOption({"swiotlb", std::nullopt}, &options), StatusIs(kInvalidArgument));
  EXPECT_THAT(SetDeviceOption(With("vm_id", "{872270E1-A899-4AF6-b454-7193634435ad}"), &options),
              IsOkAndHolds(true));
  EXPECT_EQ(options.vm_id, "872270E1-A899-4AF6-b454-7193634435ad");
  EXPECT_THAT(SetDeviceOption(With("uid", "1"), &options), IsOkAndHolds(false));
}

TEST(OptionString, ErrorsStayShortAndPrintable) {
  const std::string key = std::string(5000, 'k') + "\n\x01";
  const std::string text(
      PermissionsOf({key, std::string("\n\x02") + std::string(5000, 'v')}).status().message());
  EXPECT_LT(text.size(), 1000u);
  for (const char c : text) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << text;
}

// Whatever the bytes are: an answer, and one that gives the same again when it is written out.
TEST(OptionString, AnyText) {
  std::mt19937 random(1);
  constexpr char kAlphabet[] = "a=;,0x\\{}-\n\xff ";
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (size_t length = random() % 24; length > 0; --length) {
      text += kAlphabet[random() % (sizeof(kAlphabet) - 1)];
    }
    const auto string = ParseOptionString(text);
    if (!string.ok()) continue;
    std::string again = string->name;
    for (const Option& option : string->options) {
      absl::StrAppend(&again, ";", option.key, option.value.has_value() ? "=" : "",
                      option.value.value_or(""));
    }
    const auto second = ParseOptionString(again);
    ASSERT_OK(second) << text;
    EXPECT_EQ(Text(*second), Text(*string)) << text;
  }
}

}  // namespace
}  // namespace virtbay::wsl
