// Matchers for absl::Status and absl::StatusOr: IsOk, StatusIs(code[, text]), IsOkAndHolds, and
// ASSERT_OK_AND_ASSIGN. Stateless; any thread.
#ifndef VIRTBAY_TESTS_SUPPORT_STATUS_MATCHERS_H_
#define VIRTBAY_TESTS_SUPPORT_STATUS_MATCHERS_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/status.h"

namespace virtbay::testing {

inline const absl::Status& ToStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& ToStatus(const absl::StatusOr<T>& value) {
  return value.status();
}

// A Status or StatusOr that is OK.
MATCHER(IsOk, "is OK") {
  *result_listener << ToStatus(arg);
  return arg.ok();
}

// A Status or StatusOr with that code.
MATCHER_P(StatusIs, code, "has the code " + absl::StatusCodeToString(code)) {
  *result_listener << ToStatus(arg);
  return ToStatus(arg).code() == code;
}

// The same, and its text contains `part`.
MATCHER_P2(StatusIs, code, part,
           "has the code " + absl::StatusCodeToString(code) + " and a text with '" + part + "'") {
  *result_listener << ToStatus(arg);
  return ToStatus(arg).code() == code &&
         std::string(ToStatus(arg).message()).find(part) != std::string::npos;
}

// A StatusOr that is OK and whose value matches.
MATCHER_P(IsOkAndHolds, inner, "is OK and its value matches") {
  *result_listener << ToStatus(arg);
  return arg.ok() && ::testing::ExplainMatchResult(inner, *arg, result_listener);
}

}  // namespace virtbay::testing

#define ASSERT_OK(expression) ASSERT_THAT((expression), ::virtbay::testing::IsOk())
#define EXPECT_OK(expression) EXPECT_THAT((expression), ::virtbay::testing::IsOk())

// Declares `lhs` from a StatusOr, or fails the test.
#define ASSERT_OK_AND_ASSIGN(lhs, expression) \
  ASSERT_OK_AND_ASSIGN_IMPL(VIRTBAY_CONCAT(virtbay_test_status_or_, __LINE__), lhs, expression)
#define ASSERT_OK_AND_ASSIGN_IMPL(temporary, lhs, expression) \
  auto temporary = (expression);                              \
  ASSERT_THAT(temporary, ::virtbay::testing::IsOk());         \
  lhs = std::move(temporary).value()

#endif  // VIRTBAY_TESTS_SUPPORT_STATUS_MATCHERS_H_
