// The syntax of .wslconfig.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "hostif/wsl/ini.h"
#include "tests/support/status_matchers.h"

namespace virtbay::wsl {
namespace {

using ::virtbay::testing::StatusIs;
using enum absl::StatusCode;

std::string Text(absl::string_view ini) {
  const auto entries = ParseIni(ini, "f");
  if (!entries.ok()) return std::string(entries.status().message());
  std::string out;
  for (const IniEntry& entry : *entries) {
    absl::StrAppend(&out, entry.line, ":", entry.section, ".", entry.key, "=<", entry.value, ">",
                    entry.malformed.empty() ? "" : "!", "\n");
  }
  return out;
}

TEST(Ini, SectionsAndEntries) {
  EXPECT_EQ(Text(""), "");
  EXPECT_EQ(Text("# a comment\n\n  # another\n"), "");
  EXPECT_EQ(Text("[WSL2]\nkey=1\n[experimental] # c\n  Other = two words  # c\n"),
            "2:wsl2.key=<1>\n4:experimental.Other=<two words>\n");
  EXPECT_EQ(Text("key=1"), "1:.key=<1>\n");
  EXPECT_EQ(Text("[a]\r\nkey=1\r\nb=\r\n"), "2:a.key=<1>\n3:a.b=<>\n");
  EXPECT_EQ(Text("\xef\xbb\xbf[a]\nb=1"), "2:a.b=<1>\n");
  EXPECT_EQ(Text("a==b=c"), "1:.a=<=b=c>\n");
  EXPECT_EQ(Text("a=1 2\t\n"), "1:.a=<1 2>\n");
}

TEST(Ini, QuotesAndEscapes) {
  EXPECT_EQ(Text(R"(a=" # no comment " # one)"), "1:.a=< # no comment >\n");
  EXPECT_EQ(Text(R"(a=x\"y\\z\tt)"), "1:.a=<x\"y\\z\tt>\n");
  EXPECT_EQ(Text("a=C:\\\\Users\\\\me\\\\\nb=2\n"), "1:.a=<C:\\Users\\me\\>\n2:.b=<2>\n");
  EXPECT_EQ(Text("a=one \\\n  two\nb=3\n"), "1:.a=<one   two>\n3:.b=<3>\n");
  EXPECT_EQ(Text("a=one\\\r\ntwo\nb=3\n"), "1:.a=<onetwo>\n3:.b=<3>\n");
  EXPECT_EQ(Text("a=1\\"), "1:.a=<1>\n");
  // Wrong, but only for those who read this key.
  EXPECT_EQ(Text("a=C:\\Users\nb=2\n"), "1:.a=<C:sers>!\n2:.b=<2>\n");
  EXPECT_EQ(Text("a=\"open\nb=2\n"), "1:.a=<open>!\n2:.b=<2>\n");
}

TEST(Ini, RefusesWithTheLine) {
  for (const auto& [text, line] : {
           std::pair<const char*, const char*>{"[a]\nnonsense\n", "f:2: "},
           {"\n\n= 1\n", "f:3: "},
           {"1key=2\n", "f:1: "},
           {"; comment\n", "f:1: "},
           {"[a\n", "f:1: "},
           {"[]\n", "f:1: "},
           {"[a] b\n", "f:1: "},
           {"[a b]\n", "f:1: "},
           {"key.sub=1\n", "f:1: "},
           {"\xff\xfe[\n", "f:1: is UTF-16"},
       }) {
    EXPECT_THAT(ParseIni(text, "f"), StatusIs(kInvalidArgument, line)) << text;
  }
  EXPECT_THAT(ParseIni(absl::string_view("a=\0", 3), "f"), StatusIs(kInvalidArgument, "NUL"));
}

TEST(Ini, AnyText) {
  std::mt19937 random(1);
  constexpr char kAlphabet[] = "[]a1=#\"\\ \t\r\n";
  for (int i = 0; i < 50000; ++i) {
    std::string text;
    for (size_t length = random() % 32; length > 0; --length) {
      text += kAlphabet[random() % (sizeof(kAlphabet) - 1)];
    }
    const auto entries = ParseIni(text, "f");
    if (!entries.ok()) continue;
    uint32_t line = 0;
    for (const IniEntry& entry : *entries) {
      EXPECT_GT(entry.line, line) << text;
      EXPECT_FALSE(entry.key.empty()) << text;
      line = entry.line;
    }
  }
}

}  // namespace
}  // namespace virtbay::wsl
