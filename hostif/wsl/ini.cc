#include "hostif/wsl/ini.h"

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "framework/base/status.h"

namespace virtbay::wsl {
namespace {

bool IsBlank(char c) { return c == ' ' || c == '\t'; }
bool IsAlpha(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)); }
bool IsAlnum(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)); }

class Reader {
 public:
  Reader(absl::string_view text, absl::string_view name) : text_(text), name_(name) {}

  absl::StatusOr<std::vector<IniEntry>> Read() {
    while (!AtEnd()) {
      SkipBlanks();
      if (AtLineEnd() || Peek() == '#') {
        SkipLine();
      } else if (Peek() == '[') {
        VIRTBAY_RETURN_IF_ERROR(ReadSection());
      } else {
        VIRTBAY_RETURN_IF_ERROR(ReadEntry());
      }
    }
    return std::move(entries_);
  }

 private:
  bool AtEnd() const { return at_ == text_.size(); }
  char Peek() const { return text_[at_]; }
  // A carriage return ends a line only in front of the newline.
  bool AtLineEnd() const {
    return AtEnd() || Peek() == '\n' || absl::StartsWith(text_.substr(at_), "\r\n");
  }
  void SkipBlanks() {
    while (!AtEnd() && IsBlank(Peek())) ++at_;
  }
  void SkipLine() {
    const size_t end = text_.find('\n', at_);
    at_ = end == absl::string_view::npos ? text_.size() : end + 1;
    ++line_;
  }
  std::string Word() {
    const size_t begin = at_;
    while (!AtEnd() && IsAlnum(Peek())) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }
  absl::Status Wrong(absl::string_view reason) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ":", line_, ": ", reason));
  }

  absl::Status ReadSection() {
    ++at_;
    section_ = absl::AsciiStrToLower(Word());
    if (section_.empty() || AtEnd() || Peek() != ']') return Wrong("is not a section, [name]");
    ++at_;
    SkipBlanks();
    if (!AtLineEnd() && Peek() != '#') return Wrong("there is more on the line of a section");
    SkipLine();
    return absl::OkStatus();
  }

  absl::Status ReadEntry() {
    IniEntry entry;
    entry.section = section_;
    entry.line = line_;
    if (!IsAlpha(Peek())) return Wrong("is none of [section], key=value, # comment");
    entry.key = Word();
    SkipBlanks();
    if (AtEnd() || Peek() != '=') return Wrong("is none of [section], key=value, # comment");
    ++at_;
    SkipBlanks();
    ReadValue(&entry);
    SkipLine();
    entries_.push_back(std::move(entry));
    return absl::OkStatus();
  }

  void ReadValue(IniEntry* entry) {
    size_t trimmed = 0;  // the value's length without blanks at its end
    bool quoted = false;
    while (!AtLineEnd() && (quoted || Peek() != '#')) {
      const char c = Peek();
      ++at_;
      if (c == '"') {
        quoted = !quoted;
      } else if (c == '\\') {
        Escape(entry);
      } else {
        entry->value += c;
      }
      // Blanks inside quotes count because of the quote behind them.
      if (!IsBlank(c)) trimmed = entry->value.size();
    }
    if (quoted) entry->malformed = "a quote is missing";
    entry->value.resize(trimmed);
  }

  void Escape(IniEntry* entry) {
    if (AtLineEnd()) {
      if (!AtEnd()) SkipLine();
      return;
    }
    const char c = Peek();
    ++at_;
    switch (c) {
      case '\\':
      case '"':
        entry->value += c;
        break;
      case 'b':
        entry->value += '\b';
        break;
      case 'n':
        entry->value += '\n';
        break;
      case 't':
        entry->value += '\t';
        break;
      default:
        entry->malformed = "a backslash has to be written twice";
        break;
    }
  }

  const absl::string_view text_;
  const absl::string_view name_;
  size_t at_ = 0;
  uint32_t line_ = 1;
  std::string section_;
  std::vector<IniEntry> entries_;
};

}  // namespace

absl::StatusOr<std::vector<IniEntry>> ParseIni(absl::string_view text, absl::string_view name) {
  const auto wrong = [&](absl::string_view reason) {
    return absl::InvalidArgumentError(absl::StrCat(name, ":1: ", reason));
  };
  if (absl::StartsWith(text, "\xff\xfe") || absl::StartsWith(text, "\xfe\xff")) {
    return wrong("is UTF-16; it has to be UTF-8");
  }
  absl::ConsumePrefix(&text, "\xef\xbb\xbf");
  if (text.find('\0') != absl::string_view::npos) return wrong("contains NUL bytes");
  return Reader(text, name).Read();
}

}  // namespace virtbay::wsl
