// Bytes for tests of proxy-net, written as hexadecimal digits; what is no digit is for the reader.
#ifndef VIRTBAY_TESTS_UNIT_PROXY_NET_BYTES_H_
#define VIRTBAY_TESTS_UNIT_PROXY_NET_BYTES_H_

#include <cctype>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

using Buffer = std::vector<uint8_t>;

// "0800 45" is {0x08, 0x00, 0x45}.
inline Buffer Hex(std::string_view text) {
  Buffer out;
  int high = -1;
  for (const char c : text) {
    if (std::isxdigit(static_cast<unsigned char>(c)) == 0) continue;
    const int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
    if (high < 0) {
      high = digit;
    } else {
      out.push_back(static_cast<uint8_t>(high << 4 | digit));
      high = -1;
    }
  }
  return out;
}

// The reverse, for messages of failed tests.
inline std::string ToHex(Bytes bytes) {
  std::string out;
  for (const uint8_t byte : bytes) {
    out.push_back("0123456789abcdef"[byte >> 4]);
    out.push_back("0123456789abcdef"[byte & 15]);
  }
  return out;
}

inline Buffer Join(std::initializer_list<Buffer> parts) {
  Buffer out;
  for (const Buffer& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

// A copy whose end is the end of its allocation, so that a sanitizer sees the byte behind it.
inline Buffer Exactly(Bytes bytes) { return Buffer(bytes.begin(), bytes.end()); }

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_TESTS_UNIT_PROXY_NET_BYTES_H_
