// Prometheus text: one HELP and TYPE per family, samples together, labels escaped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "hostif/device_host/prometheus.h"

namespace virtbay::device_host {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A reader of the text format 0.0.4 that takes nothing on trust, with the rules that promtool's
// check adds: every family has a help and a type, a counter's name ends in _total, and no other's
// does. Fails the test at the first line that is wrong.
class Checker {
 public:
  explicit Checker(absl::string_view text) {
    EXPECT_TRUE(text.empty() || absl::EndsWith(text, "\n"));
    absl::ConsumeSuffix(&text, "\n");
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      if (absl::StartsWith(line, "# HELP ")) {
        Help(line.substr(7));
      } else if (absl::StartsWith(line, "# TYPE ")) {
        Type(line.substr(7));
      } else {
        Sample(line);
      }
      if (::testing::Test::HasFailure()) {
        ADD_FAILURE() << "in the line: " << line;
        return;
      }
    }
    EXPECT_TRUE(has_type_ || families_.empty()) << family_ << " has no type";
  }

  // family -> type
  const std::map<std::string, std::string>& families() const { return families_; }
  // "name{labels}" -> value
  const std::map<std::string, std::string>& samples() const { return samples_; }

 private:
  static bool IsName(absl::string_view name, bool colons) {
    if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0])) != 0) return false;
    for (const char c : name) {
      const bool letter = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
      if (!letter && !(colons && c == ':')) return false;
    }
    return true;
  }

  void Help(absl::string_view rest) {
    EXPECT_TRUE(has_type_ || families_.empty()) << family_ << " has no type";
    const size_t space = rest.find(' ');
    family_ = std::string(rest.substr(0, space));
    EXPECT_TRUE(IsName(family_, true));
    EXPECT_TRUE(families_.emplace(family_, "").second) << "a second help";
    const absl::string_view text = space == rest.npos ? "" : rest.substr(space + 1);
    EXPECT_FALSE(text.empty()) << "no help";
    for (size_t i = 0; i < text.size(); ++i) {
      EXPECT_GE(static_cast<unsigned char>(text[i]), 0x20);
      if (text[i] != '\\') continue;
      ++i;
      EXPECT_TRUE(i < text.size() && (text[i] == '\\' || text[i] == 'n')) << "an escape";
    }
    has_type_ = false;
  }

  void Type(absl::string_view rest) {
    const std::vector<std::string> words = absl::StrSplit(rest, ' ');
    ASSERT_EQ(words.size(), 2u);
    EXPECT_EQ(words[0], family_) << "type and help stand together";
    EXPECT_FALSE(has_type_) << "a second type";
    EXPECT_TRUE(words[1] == "counter" || words[1] == "gauge") << words[1];
    EXPECT_EQ(absl::EndsWith(words[0], "_total"), words[1] == "counter");
    families_[family_] = words[1];
    has_type_ = true;
  }

  void Sample(absl::string_view line) {
    EXPECT_TRUE(has_type_) << "a sample before its type";
    size_t at = line.find_first_of("{ ");
    ASSERT_NE(at, line.npos);
    EXPECT_EQ(line.substr(0, at), family_) << "a sample outside its family";
    std::set<std::string> labels;
    if (line[at] == '{') {
      ++at;
      while (at < line.size() && line[at] != '}') Label(line, &at, &labels);
      ASSERT_LT(at, line.size()) << "the labels do not end";
      ++at;
    }
    const std::string key(line.substr(0, at));
    ASSERT_TRUE(at < line.size() && line[at] == ' ');
    const std::string value(line.substr(at + 1));
    double number = 0;
    EXPECT_TRUE(absl::SimpleAtod(value, &number)) << value;
    EXPECT_TRUE(std::isfinite(number));
    EXPECT_TRUE(families_[family_] != "counter" || number >= 0);
    EXPECT_TRUE(samples_.emplace(key, value).second) << "a second sample";
  }

  static void Label(absl::string_view line, size_t* at, std::set<std::string>* labels) {
    const size_t equals = line.find('=', *at);
    ASSERT_NE(equals, line.npos);
    const std::string name(line.substr(*at, equals - *at));
    EXPECT_TRUE(IsName(name, false)) << name;
    EXPECT_FALSE(absl::StartsWith(name, "__"));
    EXPECT_TRUE(labels->insert(name).second) << "a second label " << name;
    *at = equals + 1;
    ASSERT_TRUE(*at < line.size() && line[*at] == '"');
    for (++*at; *at < line.size() && line[*at] != '"'; ++*at) {
      if (line[*at] != '\\') continue;
      ++*at;
      ASSERT_TRUE(*at < line.size());
      EXPECT_TRUE(line[*at] == '\\' || line[*at] == '"' || line[*at] == 'n') << "an escape";
    }
    ASSERT_LT(*at, line.size()) << "the value does not end";
    ++*at;
    if (*at < line.size() && line[*at] == ',') {
      ++*at;
    } else {
      ASSERT_TRUE(*at < line.size() && line[*at] == '}');
    }
  }

  std::map<std::string, std::string> families_;
  std::map<std::string, std::string> samples_;
  std::string family_;
  bool has_type_ = false;
};

DeviceReport Device(const std::string& name) {
  DeviceReport report;
  report.info.name = name;
  report.info.plugin = "virtiofs";
  report.info.type = "virtiofs";
  report.info.state = "running";
  report.info.queues.resize(2);
  report.info.queues[1].requests = 18446744073709551615u;
  report.info.queues[1].slot_waits = 2;
  report.info.queues[1].slot_wait_ns = 3'000'000'004;
  report.info.cpu_ns = 1'500'000'000;
  report.info.metrics = {{"lookups_total", 5}, {"errors", 3}, {"open_files", 2}};
  report.info.metric_help = {{"lookups_total", "Names\nlooked \\ up"}, {"open_files", "Open"}};
  report.info.metric_kind = {{"lookups_total", MetricKind::kCounter},
                             {"errors", MetricKind::kCounter},
                             {"open_files", MetricKind::kGauge}};
  return report;
}

TEST(Prometheus, EscapesLabels) {
  EXPECT_EQ(EscapeLabel("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
  DeviceReport report = Device("x");
  report.info.plugin = "a\"b\\c\nd";
  const std::string text = PrometheusText({report});
  EXPECT_THAT(text, HasSubstr("plugin=\"a\\\"b\\\\c\\nd\""));
  const Checker checked(text);
}

TEST(Prometheus, Values) {
  const std::string text = PrometheusText({Device("x")});
  EXPECT_THAT(text, HasSubstr("virtbay_queue_requests_total{device=\"x\",queue=\"1\"} "
                              "18446744073709551615\n"));
  EXPECT_THAT(text, HasSubstr("virtbay_queue_slot_waits_total{device=\"x\",queue=\"1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("virtbay_queue_slot_wait_seconds_total{device=\"x\",queue=\"1\"} "
                              "3.000000004\n"));
  EXPECT_THAT(text, HasSubstr("virtbay_device_cpu_seconds_total{device=\"x\"} 1.5\n"));
  EXPECT_THAT(text, HasSubstr("# HELP virtbay_virtiofs_lookups_total Names\\nlooked \\\\ up\n"
                              "# TYPE virtbay_virtiofs_lookups_total counter\n"
                              "virtbay_virtiofs_lookups_total{device=\"x\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE virtbay_virtiofs_errors_total counter\n"
                              "virtbay_virtiofs_errors_total{device=\"x\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE virtbay_virtiofs_open_files gauge\n"));
}

TEST(Prometheus, EveryFamilyHasHelpTypeAndItsSamplesTogether) {
  DeviceReport odd = Device("z");
  odd.info.type = "weird type/1";
  const std::string text = PrometheusText({Device("x"), Device("y"), odd});
  EXPECT_THAT(text, HasSubstr("virtbay_weird_type_1_open_files{device=\"z\"} 2\n"));
  const Checker checked(text);
  EXPECT_EQ(checked.samples().at("virtbay_virtiofs_lookups_total{device=\"y\"}"), "5");
  EXPECT_EQ(checked.families().at("virtbay_virtiofs_open_files"), "gauge");
  EXPECT_EQ(checked.families().at("virtbay_queue_requests_total"), "counter");
}

TEST(Prometheus, WhatAPluginCallsItsMetricsBreaksNothing) {
  DeviceReport report = Device("x");
  report.info.type = "queue";
  report.info.metrics = {{"requests", 1}, {"requests_total", 2}, {"in_flight", 3}, {"a", 4}};
  report.info.metric_help = {{"a", "tab\tbell\a\x7f carriage\r quote\" \\n"}};
  report.info.metric_kind = {{"in_flight", MetricKind::kGauge}};
  // The same type from another version of the plugin, which counts what the first one measures.
  DeviceReport other = report;
  other.info.name = "y";
  other.info.metric_kind = {{"a", MetricKind::kGauge}};
  const Checker checked(PrometheusText({report, other}));
  EXPECT_EQ(checked.samples().at("virtbay_queue_requests_2_total{device=\"x\"}"), "1");
  EXPECT_EQ(checked.samples().at("virtbay_queue_requests_3_total{device=\"x\"}"), "2");
  EXPECT_EQ(checked.samples().at("virtbay_queue_in_flight_2{device=\"x\"}"), "3");
  EXPECT_EQ(checked.samples().at("virtbay_queue_in_flight_total{device=\"y\"}"), "3");
  EXPECT_EQ(checked.samples().at("virtbay_queue_a_total{device=\"x\"}"), "4");
  EXPECT_EQ(checked.samples().at("virtbay_queue_a{device=\"y\"}"), "4");
}

TEST(Prometheus, NoDevices) {
  const std::string text = PrometheusText({});
  EXPECT_THAT(text, HasSubstr("# TYPE "));
  EXPECT_THAT(text, Not(HasSubstr("\n\n")));
  const Checker checked(text);
  EXPECT_THAT(checked.samples(), ::testing::ElementsAre(std::pair("virtbay_process_tainted", "0")));
}

}  // namespace
}  // namespace virtbay::device_host
