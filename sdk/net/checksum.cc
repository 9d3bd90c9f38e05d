#include "sdk/net/checksum.h"

#include <cstring>

namespace virtbay::sdk::net {

uint16_t OnesSum(std::span<const std::byte> bytes) {
  // The sum does not depend on the byte order (RFC 1071 2 B), so wide words of memory do.
  uint64_t sum = 0;
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    uint32_t words[2];
    std::memcpy(words, bytes.data() + at, 8);
    sum += words[0];
    sum += words[1];
  }
  for (; at + 2 <= bytes.size(); at += 2) {
    uint16_t word = 0;
    std::memcpy(&word, bytes.data() + at, 2);
    sum += word;
  }
  if (at < bytes.size()) {
    uint16_t word = 0;
    std::memcpy(&word, bytes.data() + at, 1);
    sum += word;
  }
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(sum);
}

void FinishChecksum(std::span<std::byte> frame, const Offload& offload) {
  auto sum = static_cast<uint16_t>(~OnesSum(frame.subspan(offload.csum_start)));
  // UDP: zero means that there is none (RFC 768); the checksum of a sum that is zero is all ones.
  if (sum == 0 && offload.csum_offset == 6) sum = 0xffff;
  std::memcpy(frame.data() + offload.csum_start + offload.csum_offset, &sum, sizeof(sum));
}

}  // namespace virtbay::sdk::net
