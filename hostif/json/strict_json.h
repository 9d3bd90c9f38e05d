// One JSON object a line, from somebody who is not trusted: the control socket, the guest channel.
// Stateless; every function is [any].
#ifndef VIRTBAY_HOSTIF_JSON_STRICT_JSON_H_
#define VIRTBAY_HOSTIF_JSON_STRICT_JSON_H_

#include <cstddef>
#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace virtbay {

inline constexpr int kMaxJsonDepth = 8;

// [any] The object in `line`. InvalidArgument when the line is longer than `max_bytes`, is nested
// deeper than kMaxJsonDepth, is no JSON object, or gives a key twice, in whichever object of it.
// Throws what the allocator throws.
absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view line, size_t max_bytes);

}  // namespace virtbay

#endif  // VIRTBAY_HOSTIF_JSON_STRICT_JSON_H_
