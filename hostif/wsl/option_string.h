// The option strings of WSL's devices: `name[;key=value|;flag]...`, where the first `=` of a part
// divides it, empty parts mean nothing, and of a key that is given twice the first counts.
// Values; [any]. The text is hostile input: bounded, and nothing throws.
#ifndef VIRTBAY_HOSTIF_WSL_OPTION_STRING_H_
#define VIRTBAY_HOSTIF_WSL_OPTION_STRING_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace virtbay::wsl {

inline constexpr size_t kMaxOptionString = 16 << 10;  // bytes
inline constexpr size_t kMaxOptions = 256;

struct Option {
  std::string key;
  std::optional<std::string> value;  // none: a flag, without `=`
};

struct OptionString {
  std::string name;             // the first part
  std::vector<Option> options;  // in the order given, each key once
};

// [any] InvalidArgument for a text that is longer than kMaxOptionString, has more options than
// kMaxOptions, contains a NUL or an empty key, or has no name.
absl::StatusOr<OptionString> ParseOptionString(absl::string_view text);

// [any] The same for a text without a name: all of its parts are options.
absl::StatusOr<std::vector<Option>> ParseOptions(absl::string_view text);

// What a value may be; each error is InvalidArgument and begins with the key.
// [any] A flag stands alone: `ro`, not `ro=1`.
absl::Status CheckFlag(const Option& option);
// [any] The value, which must be there and not be empty.
absl::StatusOr<std::string> TextOf(const Option& option);
// [any] A decimal number of at most `limit`.
absl::StatusOr<uint32_t> NumberOf(const Option& option, uint32_t limit);
// [any] Permission bits in octal, with or without a leading 0, of at most 0777.
absl::StatusOr<uint32_t> PermissionsOf(const Option& option);
// [any] A GUID, in braces or not.
absl::StatusOr<std::string> GuidOf(const Option& option);

// [any] What to say of a key that nobody knows.
std::string UnknownOption(const Option& option);

}  // namespace virtbay::wsl

#endif  // VIRTBAY_HOSTIF_WSL_OPTION_STRING_H_
