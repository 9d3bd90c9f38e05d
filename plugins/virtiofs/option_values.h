// Values of options: texts to booleans and numbers, with an error that names key and value.
// Stateless functions, [control].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_OPTION_VALUES_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_OPTION_VALUES_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

// `option KEY: "VALUE" is not EXPECTED`.
sdk::Error BadValue(std::string_view key, std::string_view value, std::string_view expected);

// A boolean; the empty text is true, as in a list of flags. Nothing when it is none.
std::optional<bool> BoolOf(std::string_view value);
sdk::Status ParseBool(std::string_view key, std::string_view value, bool* out);
// A decimal number from low to high.
sdk::Status ParseNumber(std::string_view key, std::string_view value, uint32_t low, uint32_t high,
                        uint32_t* out);
// Permission bits in octal, at most 0777.
sdk::Status ParseOctal(std::string_view key, std::string_view value, uint32_t* out);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_OPTION_VALUES_H_
