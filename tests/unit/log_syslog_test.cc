// Log::ToSyslog against a syslog(3) of the test's own, which takes the C library's place.
#undef _FORTIFY_SOURCE  // with it the header defines syslog
#include "framework/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <syslog.h>

#include <cstdarg>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Syslog {
  std::string ident;
  int option = 0;
  int facility = 0;
  bool open = false;
  std::vector<std::pair<int, std::string>> lines;
};

Syslog& Written() {
  static Syslog written;
  return written;
}

void Take(int priority, const char* format, va_list arguments) {
  char text[256];
  std::vsnprintf(text, sizeof text, format, arguments);
  Written().lines.emplace_back(priority, text);
}

}  // namespace

extern "C" {
void openlog(const char* ident, int option, int facility) {
  Written().ident = ident;
  Written().option = option;
  Written().facility = facility;
  Written().open = true;
}
void closelog() { Written().open = false; }
void syslog(int priority, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Take(priority, format, arguments);
  va_end(arguments);
}
// What the call becomes in a build with _FORTIFY_SOURCE.
void __syslog_chk(int priority, int /*flag*/, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Take(priority, format, arguments);
  va_end(arguments);
}
}

namespace virtbay {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(LogToSyslog, WritesLinesOfItsLevelWithTheirPriority) {
  Written() = Syslog();
  {
    const Log log = Log::ToSyslog("test", LogLevel::kDebug);
    EXPECT_TRUE(Written().open);
    EXPECT_EQ(Written().ident, "test");
    EXPECT_EQ(Written().option, LOG_PID);
    EXPECT_EQ(Written().facility, LOG_DAEMON);
    const Log device = log.Named("fs");
    device.Write(LogLevel::kTrace, "below the level");
    device.Debug("one");
    device.Info("100%s");
    device.Warn("three");
    log.Error("four");
    log.set_level(LogLevel::kError);
    device.Warn("five");
  }
  EXPECT_THAT(Written().lines, ElementsAre(Pair(LOG_DEBUG, "fs: one"), Pair(LOG_INFO, "fs: 100%s"),
                                           Pair(LOG_WARNING, "fs: three"), Pair(LOG_ERR, "four")));
  EXPECT_FALSE(Written().open);
}

}  // namespace
}  // namespace virtbay
