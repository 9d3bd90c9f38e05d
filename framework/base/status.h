// Helpers round absl::Status: errno, context, and early return.
// Stateless; [any].
#ifndef VIRTBAY_FRAMEWORK_BASE_STATUS_H_
#define VIRTBAY_FRAMEWORK_BASE_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/export.h"

namespace virtbay {

// "what: strerror(error)" with the canonical code of the errno.
VIRTBAY_EXPORT absl::Status ErrnoStatus(int error, absl::string_view what);

// The same status, payloads included, with "context: " before its text; OK stays OK.
VIRTBAY_EXPORT absl::Status Annotate(const absl::Status& status, absl::string_view context);

}  // namespace virtbay

#define VIRTBAY_CONCAT_INNER(a, b) a##b
#define VIRTBAY_CONCAT(a, b) VIRTBAY_CONCAT_INNER(a, b)

// Returns from the function when the expression's status is not OK.
#define VIRTBAY_RETURN_IF_ERROR(expression)                                 \
  do {                                                                      \
    if (absl::Status virtbay_status = (expression); !virtbay_status.ok()) { \
      return virtbay_status;                                                \
    }                                                                       \
  } while (false)

// Declares `lhs` from a StatusOr, or returns its status.
#define VIRTBAY_ASSIGN_OR_RETURN(lhs, expression) \
  VIRTBAY_ASSIGN_OR_RETURN_IMPL(VIRTBAY_CONCAT(virtbay_status_or_, __LINE__), lhs, expression)
#define VIRTBAY_ASSIGN_OR_RETURN_IMPL(temporary, lhs, expression) \
  auto temporary = (expression);                                  \
  if (!temporary.ok()) return std::move(temporary).status();      \
  lhs = std::move(temporary).value()

#endif  // VIRTBAY_FRAMEWORK_BASE_STATUS_H_
