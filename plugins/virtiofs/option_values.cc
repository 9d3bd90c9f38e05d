#include "plugins/virtiofs/option_values.h"

namespace virtbay::virtiofs {

sdk::Status ParseOctal(std::string_view key, std::string_view value, uint32_t* out) {
  const std::optional<uint32_t> bits = sdk::NumberOf(value, 8);
  if (!bits.has_value() || *bits > 0777) {
    return sdk::BadValue(key, value, "an octal number from 000 to 777");
  }
  *out = *bits;
  return {};
}

}  // namespace virtbay::virtiofs
