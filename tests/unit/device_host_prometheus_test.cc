// Prometheus text: one HELP and TYPE per family, samples together, labels escaped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "hostif/device_host/prometheus.h"

namespace virtbay::device_host {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

DeviceReport Device(const std::string& name) {
  DeviceReport report;
  report.info.name = name;
  report.info.plugin = "virtiofs";
  report.info.type = "virtiofs";
  report.info.state = "running";
  report.info.queues.resize(2);
  report.info.queues[1].requests = 18446744073709551615u;
  report.info.cpu_ns = 1'500'000'000;
  report.info.metrics = {{"lookups_total", 5}, {"open_files", 2}};
  report.info.metric_help = {{"lookups_total", "Names\nlooked \\ up"}, {"open_files", "Open"}};
  return report;
}

TEST(Prometheus, EscapesLabels) {
  EXPECT_EQ(EscapeLabel("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
  DeviceReport report = Device("x");
  report.info.plugin = "a\"b\\c\nd";
  EXPECT_THAT(PrometheusText({report}), HasSubstr("plugin=\"a\\\"b\\\\c\\nd\""));
}

TEST(Prometheus, Values) {
  const std::string text = PrometheusText({Device("x")});
  EXPECT_THAT(text, HasSubstr("virtbay_queue_requests_total{device=\"x\",queue=\"1\"} "
                              "18446744073709551615\n"));
  EXPECT_THAT(text, HasSubstr("virtbay_device_cpu_seconds_total{device=\"x\"} 1.5\n"));
  EXPECT_THAT(text, HasSubstr("# HELP virtbay_virtiofs_lookups_total Names\\nlooked \\\\ up\n"
                              "# TYPE virtbay_virtiofs_lookups_total counter\n"
                              "virtbay_virtiofs_lookups_total{device=\"x\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE virtbay_virtiofs_open_files untyped\n"));
}

TEST(Prometheus, OneBlockPerFamily) {
  DeviceReport odd = Device("z");
  odd.info.type = "weird type/1";
  const std::string text = PrometheusText({Device("x"), Device("y"), odd});
  EXPECT_THAT(text, HasSubstr("virtbay_weird_type_1_open_files{device=\"z\"} 2\n"));
  EXPECT_THAT(text, Not(HasSubstr("\n\n")));
  ASSERT_FALSE(text.empty());
  EXPECT_EQ(text.back(), '\n');
  std::set<std::string> seen;
  std::string family;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("# HELP ", 0) == 0) {
      family = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(seen.insert(family).second) << family;
    } else if (line.rfind("# TYPE ", 0) == 0) {
      EXPECT_EQ(line.substr(7, line.find(' ', 7) - 7), family);
    } else {
      EXPECT_EQ(line.substr(0, line.find('{')), family) << line;
    }
  }
}

TEST(Prometheus, NoDevices) { EXPECT_THAT(PrometheusText({}), HasSubstr("# TYPE ")); }

}  // namespace
}  // namespace virtbay::device_host
