// Frames for tests of network devices: Ethernet, optional VLAN tags, IPv4 or IPv6, TCP or UDP, with
// the checksum fields as a driver leaves them to the device.
// Plain functions; [any].
#ifndef VIRTBAY_TESTS_SUPPORT_NET_FRAMES_H_
#define VIRTBAY_TESTS_SUPPORT_NET_FRAMES_H_

#include <cstdint>
#include <string>

namespace virtbay::testing {

inline void Put16(std::string* to, uint32_t value) {
  to->push_back(static_cast<char>(value >> 8));
  to->push_back(static_cast<char>(value));
}
inline uint16_t Get16(const std::string& from, size_t at) {
  return static_cast<uint16_t>(static_cast<uint8_t>(from[at]) << 8 |
                               static_cast<uint8_t>(from[at + 1]));
}

// The Internet checksum's folded sum, byte by byte, so that it shares nothing with the code.
inline uint32_t PlainSum(const std::string& bytes, size_t from = 0) {
  uint32_t sum = 0;
  for (size_t i = from; i < bytes.size(); ++i) {
    const uint32_t byte = static_cast<uint8_t>(bytes[i]);
    sum += (i - from) % 2 == 0 ? byte << 8 : byte;
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return sum;
}

struct FrameSpec {
  bool ipv6 = false;
  bool udp = false;
  uint32_t payload = 100;
  uint32_t vlans = 0;
  uint32_t vlan_id = 0;
  std::string destination = std::string("\x52\x54\x00\x12\x34\x56", 6);
};

struct TestFrame {
  std::string bytes;
  uint16_t transport = 0;  // where TCP or UDP begins
  uint16_t csum_offset = 0;
  uint16_t headers = 0;
};

inline TestFrame MakeFrame(const FrameSpec& spec) {
  TestFrame frame;
  std::string& out = frame.bytes;
  out = spec.destination + std::string("\x02\x00\x00\x00\x00\x01", 6);
  for (uint32_t i = 0; i < spec.vlans; ++i) {
    Put16(&out, 0x8100);
    Put16(&out, spec.vlan_id);
  }
  const uint32_t header = spec.udp ? 8 : 20;
  const uint32_t length = header + spec.payload;
  const uint32_t protocol = spec.udp ? 17 : 6;
  std::string addresses;
  if (spec.ipv6) {
    Put16(&out, 0x86dd);
    out += std::string("\x60\x00\x00\x00", 4);
    Put16(&out, length & 0xffff);
    out.push_back(static_cast<char>(protocol));
    out.push_back(64);
    addresses = std::string("\xfd\x00", 2) + std::string(13, '\0') + "\x01" +
                std::string("\xfd\x00", 2) + std::string(13, '\0') + "\x02";
  } else {
    Put16(&out, 0x0800);
    std::string ip("\x45\x00", 2);
    Put16(&ip, (20 + length) & 0xffff);
    ip += std::string("\x00\x01\x00\x00\x40", 5);
    ip.push_back(static_cast<char>(protocol));
    ip += std::string("\x00\x00", 2);
    addresses = std::string("\x0a\x00\x00\x01\x0a\x00\x00\x02", 8);
    const uint32_t sum = ~PlainSum(ip + addresses) & 0xffff;
    ip[10] = static_cast<char>(sum >> 8);
    ip[11] = static_cast<char>(sum);
    out += ip;
  }
  out += addresses;
  frame.transport = static_cast<uint16_t>(out.size());
  frame.csum_offset = spec.udp ? 6 : 16;
  frame.headers = static_cast<uint16_t>(out.size() + header);
  std::string pseudo = addresses;
  Put16(&pseudo, protocol);
  Put16(&pseudo, length & 0xffff);
  const uint32_t partial = PlainSum(pseudo);
  Put16(&out, 1000);
  Put16(&out, 2000);
  if (spec.udp) {
    Put16(&out, length & 0xffff);
    Put16(&out, partial);
  } else {
    out += std::string("\x00\x00\x00\x01\x00\x00\x00\x02\x50\x18\x20\x00", 12);
    Put16(&out, partial);
    Put16(&out, 0);
  }
  for (uint32_t i = 0; i < spec.payload; ++i) out.push_back(static_cast<char>(i * 7 + i / 251));
  return frame;
}

// Whether the TCP or UDP checksum of a finished frame is right: the sum over pseudo header and
// segment is all ones.
inline bool ChecksumGood(const std::string& bytes, const FrameSpec& spec, const TestFrame& shape) {
  std::string covered;
  const size_t addresses = spec.ipv6 ? 32 : 8;
  covered = bytes.substr(shape.transport - addresses, addresses);
  Put16(&covered, spec.udp ? 17 : 6);
  Put16(&covered, static_cast<uint32_t>(bytes.size() - shape.transport));
  covered += bytes.substr(shape.transport);
  return PlainSum(covered) == 0xffff;
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_NET_FRAMES_H_
