#include "plugins/proxy-net/packet/checksum.h"

#include <bit>
#include <cstring>

namespace virtbay::proxy_net {
namespace {

template <typename T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

uint16_t Fold(uint64_t sum) {
  sum = (sum >> 32) + (sum & 0xffffffff);
  sum = (sum >> 16) + (sum & 0xffff);
  sum = (sum >> 16) + (sum & 0xffff);
  sum = (sum >> 16) + (sum & 0xffff);
  return static_cast<uint16_t>(sum);
}

constexpr uint16_t Swap(uint16_t value) { return static_cast<uint16_t>(value >> 8 | value << 8); }

// Ones' complement addition does not care for the byte order until the end (RFC 1071 2B), nor for
// the width of what is added. 32-bit words leave room for 2^32 of them before a carry is lost.
uint64_t Sum(Bytes bytes) {
  const uint8_t* at = bytes.data();
  size_t left = bytes.size();
  uint64_t a = 0;
  uint64_t b = 0;
  while (left >= 32) {
    for (size_t i = 0; i < 32; i += 16) {
      const auto first = Load<uint64_t>(at + i);
      const auto second = Load<uint64_t>(at + i + 8);
      a += (first & 0xffffffff) + (first >> 32);
      b += (second & 0xffffffff) + (second >> 32);
    }
    at += 32;
    left -= 32;
  }
  for (; left >= 4; at += 4, left -= 4) a += Load<uint32_t>(at);
  if (left >= 2) {
    b += Load<uint16_t>(at);
    at += 2;
    left -= 2;
  }
  if (left != 0) {
    const uint8_t last[2] = {*at, 0};
    b += Load<uint16_t>(last);
  }
  return a + b;
}

}  // namespace

void Checksum::Add(Bytes bytes) {
  if (bytes.empty()) return;
  const uint16_t sum = Fold(Sum(bytes));
  sum_ += odd_ ? Swap(sum) : sum;
  if (bytes.size() % 2 != 0) odd_ = !odd_;
}

void Checksum::AddU16(uint16_t value) {
  const uint8_t bytes[] = {static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value)};
  Add(bytes);
}

void Checksum::AddU32(uint32_t value) {
  AddU16(static_cast<uint16_t>(value >> 16));
  AddU16(static_cast<uint16_t>(value));
}

void Checksum::AddPseudoHeader(const IpAddress& source, const IpAddress& destination,
                               uint8_t protocol, uint32_t length) {
  Add(source.bytes());
  Add(destination.bytes());
  AddU32(length);
  AddU16(protocol);
}

uint16_t Checksum::Folded() const {
  const uint16_t sum = Fold(sum_);
  return std::endian::native == std::endian::little ? Swap(sum) : sum;
}

uint16_t ChecksumOf(Bytes bytes) {
  Checksum sum;
  sum.Add(bytes);
  return sum.Finish();
}

uint16_t AdjustChecksum(uint16_t field, uint16_t before, uint16_t after) {
  const uint32_t sum =
      uint32_t{static_cast<uint16_t>(~field)} + static_cast<uint16_t>(~before) + after;
  return static_cast<uint16_t>(~Fold(sum));
}

uint16_t PseudoHeaderSum(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                         uint32_t length) {
  Checksum sum;
  sum.AddPseudoHeader(source, destination, protocol, length);
  return sum.Folded();
}

bool TransportChecksumOk(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                         Bytes segment) {
  Checksum sum;
  sum.AddPseudoHeader(source, destination, protocol, static_cast<uint32_t>(segment.size()));
  sum.Add(segment);
  return sum.Finish() == 0;
}

}  // namespace virtbay::proxy_net
