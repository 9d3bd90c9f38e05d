// The syntax of .wslconfig: `[section]` lines, `key = value` lines, comments from `#` to the end of
// the line. In a value double quotes keep `#` and are dropped; a backslash makes \\ \" \b \n \t,
// and before the end of the line joins the next one. Blanks around a value are dropped. Values;
// [any]. The text is hostile input.
#ifndef VIRTBAY_HOSTIF_WSL_INI_H_
#define VIRTBAY_HOSTIF_WSL_INI_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace virtbay::wsl {

struct IniEntry {
  std::string section;  // in lower case; empty before the first one
  std::string key;      // as it is spelled
  std::string value;
  uint32_t line = 0;  // where it begins, from 1
  // What is wrong with the value's escapes or quotes; empty: nothing. Only the keys that somebody
  // reads are worth an error: Windows paths with single backslashes are common in the others.
  std::string malformed;
};

// [any] The entries in their order. InvalidArgument as "NAME:LINE: reason" for a line that is none
// of the above and for a text with NUL bytes; `name` stands for the file.
absl::StatusOr<std::vector<IniEntry>> ParseIni(absl::string_view text, absl::string_view name);

}  // namespace virtbay::wsl

#endif  // VIRTBAY_HOSTIF_WSL_INI_H_
