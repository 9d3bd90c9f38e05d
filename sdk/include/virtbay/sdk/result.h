// Result<T>: a value or an Error, for plugin code, which has neither absl nor std::expected.
// Owned by value; plain data, usable on every thread.
#ifndef VIRTBAY_SDK_RESULT_H_
#define VIRTBAY_SDK_RESULT_H_

#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "virtbay/sdk/abi.h"

namespace virtbay::sdk {

/// What went wrong: a VIRTBAY_* code, the errno behind it (or 0), and a text for people.
struct Error {
  int32_t code = VIRTBAY_UNKNOWN;  ///< VIRTBAY_*, never VIRTBAY_OK
  int sys_errno = 0;               ///< or 0
  std::string text;                ///< one line
};

inline Error InvalidArgument(std::string text) {
  return Error{VIRTBAY_INVALID_ARGUMENT, 0, std::move(text)};
}

/// "what: strerror(error)", with the code that fits the errno.
inline Error Errno(int error, const std::string& what) {
  int32_t code = VIRTBAY_UNKNOWN;
  if (error == ENOENT) code = VIRTBAY_NOT_FOUND;
  if (error == EACCES || error == EPERM) code = VIRTBAY_PERMISSION_DENIED;
  if (error == EMFILE || error == ENFILE || error == ENOMEM) code = VIRTBAY_RESOURCE_EXHAUSTED;
  if (error == ENOTDIR) code = VIRTBAY_FAILED_PRECONDITION;
  if (error == EINVAL) code = VIRTBAY_INVALID_ARGUMENT;
  return Error{code, error, what + ": " + std::strerror(error)};
}

/// Either a T or an Error.
template <typename T>
class [[nodiscard]] Result {
 public:
  /// Success.
  // NOLINTNEXTLINE(google-explicit-constructor)
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  /// Failure.
  // NOLINTNEXTLINE(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  /// Whether there is a value.
  bool ok() const { return state_.index() == 0; }
  /// Precondition: ok().
  T& value() { return std::get<0>(state_); }
  /// Precondition: ok().
  const T& value() const { return std::get<0>(state_); }
  /// Precondition: ok().
  T& operator*() { return value(); }
  /// Precondition: ok().
  T* operator->() { return &value(); }
  /// Precondition: !ok().
  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

/// Success, or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  /// Failure.
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  /// Whether it succeeded.
  bool ok() const { return !error_.has_value(); }
  /// Precondition: !ok().
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

/// What a function without a value returns.
using Status = Result<void>;

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_RESULT_H_
