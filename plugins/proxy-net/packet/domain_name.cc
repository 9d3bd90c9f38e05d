#include "plugins/proxy-net/packet/domain_name.h"

#include <utility>
#include <vector>

namespace virtbay::proxy_net {
namespace {

constexpr size_t kMaxLabel = 63;

char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool IsNameChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

}  // namespace

std::optional<DomainName> DomainName::Parse(std::string_view text) {
  DomainName out;
  if (text == ".") return out;
  if (!text.empty() && text.back() == '.') text.remove_suffix(1);
  if (text.empty()) return std::nullopt;
  std::string wire;
  while (true) {
    const size_t dot = text.find('.');
    const std::string_view label = text.substr(0, dot);
    if (label.empty() || label.size() > kMaxLabel) return std::nullopt;
    wire.push_back(static_cast<char>(label.size()));
    for (const char c : label) {
      if (!IsNameChar(Lower(c))) return std::nullopt;
      wire.push_back(Lower(c));
    }
    if (dot == text.npos) break;
    text.remove_prefix(dot + 1);
  }
  wire.push_back('\0');
  if (wire.size() > kMaxSize) return std::nullopt;
  out.wire_ = std::move(wire);
  return out;
}

std::optional<DomainName> DomainName::Read(Bytes message, size_t* offset) {
  std::string wire;
  size_t at = *offset;
  size_t end = 0;           // behind the name, once a pointer was followed
  size_t before = *offset;  // each pointer goes further back than the one before it: no loops
  while (true) {
    if (at >= message.size()) return std::nullopt;
    const size_t length = message[at];
    if (length >= 0xc0) {
      if (at + 1 >= message.size()) return std::nullopt;
      const size_t target = (length & 0x3f) << 8 | message[at + 1];
      if (end == 0) end = at + 2;
      if (target >= before) return std::nullopt;
      before = at = target;
      continue;
    }
    if (length > kMaxLabel) return std::nullopt;
    // This label and the root's zero have to fit.
    if (length >= message.size() - at || wire.size() + length + 1 > kMaxSize) return std::nullopt;
    if (length != 0 && wire.size() + length + 2 > kMaxSize) return std::nullopt;
    wire.push_back(static_cast<char>(length));
    for (size_t i = 0; i < length; ++i) {
      wire.push_back(Lower(static_cast<char>(message[at + 1 + i])));
    }
    at += length + 1;
    if (length == 0) break;
  }
  *offset = end != 0 ? end : at;
  DomainName out;
  out.wire_ = std::move(wire);
  return out;
}

std::string DomainName::ToString() const {
  std::string text;
  for (size_t at = 0; at < wire_.size() && wire_[at] != '\0';) {
    const size_t length = static_cast<uint8_t>(wire_[at]);
    if (!text.empty()) text.push_back('.');
    for (const char c : std::string_view(wire_).substr(at + 1, length)) {
      if (c > ' ' && c < 0x7f && c != '.' && c != '\\') {
        text.push_back(c);
      } else {
        const auto byte = static_cast<uint8_t>(c);
        text.push_back('\\');
        text.push_back(static_cast<char>('0' + byte / 100));
        text.push_back(static_cast<char>('0' + byte / 10 % 10));
        text.push_back(static_cast<char>('0' + byte % 10));
      }
    }
    at += length + 1;
  }
  return text;
}

void WriteNames(std::span<const DomainName> names, Writer* out) {
  for (const DomainName& name : names) out->Put(name.wire());
}

void WriteNamesCompressed(std::span<const DomainName> names, Writer* out) {
  const size_t start = out->position();
  std::vector<std::pair<std::string_view, size_t>> written;  // ends of names and where they stand
  for (const DomainName& name : names) {
    const Bytes wire = name.wire();
    const std::string_view text(reinterpret_cast<const char*>(wire.data()), wire.size());
    for (size_t at = 0; at < text.size();) {
      const std::string_view rest = text.substr(at);
      size_t known = SIZE_MAX;
      for (const auto& [suffix, where] : written) {
        if (suffix == rest && rest.size() > 1) known = where;
      }
      if (known != SIZE_MAX) {
        out->U16(static_cast<uint16_t>(0xc000 | known));
        break;
      }
      const size_t here = out->position() - start;
      if (here < 0x4000) written.emplace_back(rest, here);
      const size_t length = size_t{static_cast<uint8_t>(rest[0])} + 1;
      out->Put(wire.subspan(at, length));
      at += length;
    }
  }
}

}  // namespace virtbay::proxy_net
