// Values of options that the SDK does not read: with an error that names key and value, as there.
// Stateless functions, [control].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_OPTION_VALUES_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_OPTION_VALUES_H_

#include <cstdint>
#include <string_view>

#include "virtbay/sdk/option.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

using sdk::BadValue;
using sdk::BoolOf;
using sdk::ParseBool;
using sdk::ParseNumber;

// Permission bits in octal, at most 0777.
sdk::Status ParseOctal(std::string_view key, std::string_view value, uint32_t* out);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_OPTION_VALUES_H_
