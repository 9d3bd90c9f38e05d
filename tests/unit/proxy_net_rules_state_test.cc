// A proxy-net device goes on with the rules of one that has saved its state: those that were made
// and removed at run time as well.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "tests/support/log_capture.h"
#include "tests/support/state_parts.h"
#include "tests/support/status_matchers.h"
#include "virtbay/host.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kRuleSection = 18;
constexpr char kDropped[] = "option rules: has changed";

class ProxyNetRulesState : public ::testing::Test {
 protected:
  void SetUp() override {
    HostOptions options;
    options.log = log_.log();
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(std::move(options)));
    spec_.name = "net";
    spec_.plugin = VIRTBAY_PROXY_NET;
    spec_.options = {{"ipv6", "off"}, {"mac", "52:54:00:00:00:01"}};
  }
  void Add(const std::string& rules) {
    spec_.options["rules"] = rules;
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec_));
  }
  void Do(const std::string& command, const std::string& text) {
    ASSERT_OK(device_.Control(command, text).status()) << command << " " << text;
  }
  std::string Rules() {
    const auto rules = device_.Control("rule-list", "");
    EXPECT_OK(rules);
    return rules.ok() ? *rules : "";
  }
  // The state of the device, which is gone.
  DeviceState Save() {
    absl::StatusOr<DeviceState> state = device_.Save();
    EXPECT_OK(state);
    device_ = DeviceHandle();
    EXPECT_OK(host_->Remove("net"));
    return state.ok() ? *std::move(state) : DeviceState();
  }
  void Restore(DeviceState state) {
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec_, std::move(state)));
  }
  // What the state says of rules; nothing: it says nothing.
  static std::optional<std::string> Section(const DeviceState& state) {
    for (const StateParts::Section& section : PartsOf(state).sections) {
      if (section.tag != kRuleSection) continue;
      const auto* text = reinterpret_cast<const char*>(section.bytes.data());
      return std::string(text, section.bytes.size());
    }
    return std::nullopt;
  }
  // With that text in its place, or without it.
  static void SetSection(DeviceState* state, const std::optional<std::string>& text) {
    StateParts parts = PartsOf(*state);
    std::erase_if(parts.sections, [](const auto& each) { return each.tag == kRuleSection; });
    if (text.has_value()) {
      const auto bytes = std::as_bytes(std::span(*text));
      parts.sections.push_back({kRuleSection, {bytes.begin(), bytes.end()}});
    }
    const std::vector<std::byte> whole = parts.Whole();
    state->bytes.assign(reinterpret_cast<const char*>(whole.data()), whole.size());
  }
  size_t Warnings() const {
    const std::vector<std::string> lines = log_.lines();
    return static_cast<size_t>(std::count_if(lines.begin(), lines.end(), [](const auto& line) {
      return absl::StrContains(line, kDropped);
    }));
  }

  LogCapture log_;
  std::unique_ptr<Host> host_;
  DeviceSpec spec_;
  DeviceHandle device_;

 private:
  static StateParts PartsOf(const DeviceState& state) {
    return StateParts(std::as_bytes(std::span(state.bytes)));
  }
};

TEST_F(ProxyNetRulesState, RulesGoOnInTheOrderInWhichTheyWereInForce) {
  Add("allow 10.0.0.1, deny any:25/tcp, allow 192.0.2.0/24");
  Do("rule-add", "deny 10.0.0.0/8");
  Do("rule-add", "2 allow 10.1.0.0/16:443/tcp");
  Do("rule-remove", "deny any:25/tcp");
  Do("rule-add", "1 deny [2001:db8::/32]/icmp");
  const std::string rules = Rules();
  EXPECT_EQ(rules,
            "deny [2001:db8::/32]/icmp\nallow 10.0.0.1\nallow 10.1.0.0/16:443/tcp\n"
            "allow 192.0.2.0/24\ndeny 10.0.0.0/8\n");
  Restore(Save());
  EXPECT_EQ(Rules(), rules);
  // And once more, without a change in between.
  Restore(Save());
  EXPECT_EQ(Rules(), rules);
  // They are changed as before.
  Do("rule-remove", "deny 10.0.0.0/8");
  Do("rule-add", "1 deny any");
  Restore(Save());
  EXPECT_EQ(Rules(), "deny any\n" + rules.substr(0, rules.find("deny 10.0.0.0/8")));
  EXPECT_EQ(Warnings(), 0u);
}

TEST_F(ProxyNetRulesState, ARuleOfTheOptionThatWasRemovedDoesNotComeBack) {
  Add("deny 10.0.0.0/8");
  Do("rule-remove", "deny 10.0.0.0/8");
  Restore(Save());
  EXPECT_EQ(Rules(), "");
}

TEST_F(ProxyNetRulesState, WithoutAChangeOrInAnOlderStateTheOptionHolds) {
  Add("deny 10.0.0.0/8, allow any:53");
  Do("rule-add", "1 deny any");
  Do("rule-remove", "deny any");
  DeviceState unchanged = Save();
  EXPECT_EQ(Section(unchanged), std::nullopt);
  Restore(std::move(unchanged));
  EXPECT_EQ(Rules(), "deny 10.0.0.0/8\nallow any:53\n");
  Do("rule-add", "deny any");
  DeviceState older = Save();
  EXPECT_EQ(Section(older),
            "2 3\ndeny 10.0.0.0/8\nallow any:53\ndeny 10.0.0.0/8\nallow any:53\ndeny any\n");
  SetSection(&older, std::nullopt);
  spec_.options["rules"] = "deny 192.0.2.0/24";
  Restore(std::move(older));
  EXPECT_EQ(Rules(), "deny 192.0.2.0/24\n");
  EXPECT_EQ(Warnings(), 0u);
}

TEST_F(ProxyNetRulesState, AnotherOptionHoldsAndTheLogSaysWhatIsDropped) {
  Add("deny 10.0.0.0/8, allow any:53");
  Do("rule-add", "1 deny 192.0.2.0/24");
  Do("rule-add", "deny any");
  Do("rule-remove", "allow any:53");
  spec_.options["rules"] = "deny 10.0.0.0/8, allow any:443";
  Restore(Save());
  EXPECT_EQ(Rules(), "deny 10.0.0.0/8\nallow any:443\n");
  EXPECT_EQ(Warnings(), 1u);
  EXPECT_TRUE(log_.Contains("2 rules added and 1 removals made at run time are dropped"));
  // Once: the next one has nothing to drop.
  spec_.options["rules"] = "deny any";
  Restore(Save());
  EXPECT_EQ(Rules(), "deny any\n");
  EXPECT_EQ(Warnings(), 1u);
}

// Who writes down what was tried out loses nothing.
TEST_F(ProxyNetRulesState, AnOptionThatHasTheRulesNowDropsNone) {
  Add("deny 10.0.0.0/8");
  Do("rule-add", "1 deny 192.0.2.0/24");
  spec_.options["rules"] = "deny 192.0.2.0/24,deny 10.0.0.0/8";
  Restore(Save());
  EXPECT_EQ(Rules(), "deny 192.0.2.0/24\ndeny 10.0.0.0/8\n");
  EXPECT_EQ(Warnings(), 0u);
  // Written otherwise it is the same option.
  Do("rule-add", "deny any");
  spec_.options["rules"] = " deny 192.0.2.0/24 , , deny 10.0.0.0/8";
  Restore(Save());
  EXPECT_EQ(Rules(), "deny 192.0.2.0/24\ndeny 10.0.0.0/8\ndeny any\n");
  EXPECT_EQ(Warnings(), 0u);
}

TEST_F(ProxyNetRulesState, AsManyRulesAsThereMayBeGoOn) {
  std::string most;
  for (int i = 0; i < 4095; ++i) {
    most += "deny 10.0." + std::to_string(i / 256) + "." + std::to_string(i % 256) + ",";
  }
  Add(most);
  Do("rule-add", "1 deny [2001:db8::1]");
  const std::string rules = Rules();
  Restore(Save());
  EXPECT_EQ(Rules(), rules);
  EXPECT_FALSE(device_.Control("rule-add", "deny any").ok());
}

TEST_F(ProxyNetRulesState, RulesThatAreWrongMakeNoDevice) {
  Add("deny 10.0.0.0/8");
  Do("rule-add", "1 deny 192.0.2.1");
  const DeviceState good = Save();
  const std::string text = Section(good).value_or("");
  ASSERT_EQ(text, "1 2\ndeny 10.0.0.0/8\ndeny 192.0.2.1\ndeny 10.0.0.0/8\n");
  const auto with = [&](const std::string& section) {
    DeviceState state{.type = good.type, .version = good.version, .bytes = good.bytes, .fds = {}};
    SetSection(&state, section);
    return state;
  };
  std::vector<std::string> wrong = {
      "0 4097\n",
      "1 2\ndeny 10.0.0.0/8\ndeny 192.0.2.1/33\ndeny 10.0.0.0/8\n",
      "1 2\ndeny 10.0.0.0/8\ndeny [192.0.2.1]\ndeny 10.0.0.0/8\n",
      // Of the option as well, though they are not to hold.
      "1 1\ndeny 10.0.0.0/33\ndeny 192.0.2.1\n",
      text + "deny any\n",
  };
  for (size_t n = 0; n < text.size(); ++n) wrong.push_back(text.substr(0, n));
  for (const std::string& section : wrong) {
    const auto added = host_->Add(spec_, with(section));
    EXPECT_EQ(added.status().code(), absl::StatusCode::kInvalidArgument) << section;
    EXPECT_THAT(added.status().message(), HasSubstr("state of the rules: ")) << section;
    if (added.ok()) host_->Remove("net").IgnoreError();
  }
  Restore(with(text));
  EXPECT_EQ(Rules(), "deny 192.0.2.1\ndeny 10.0.0.0/8\n");
}

}  // namespace
}  // namespace virtbay::testing
