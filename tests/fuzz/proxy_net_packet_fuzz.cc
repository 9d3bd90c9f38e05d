// Fuzz target: frames as a guest may write them. The first byte says how many bytes of the frame
// are left to its length alone, and whether it is one to be cut.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/checksum.h"
#include "plugins/proxy-net/packet/parse.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace virtbay::proxy_net;

void Expect(bool holds) {
  if (!holds) abort();
}

// Mutations seldom hit a checksum.
void RightChecksum(std::vector<uint8_t>* frame) {
  const auto ethernet = ParseEthernet(*frame);
  if (!ethernet.ok() || ethernet->type != kEtherIpv4) return;
  const size_t at = ethernet->header_length;
  if (frame->size() < at + kIpv4Size) return;
  const size_t length = ((*frame)[at] & size_t{15}) * 4;
  if (length < kIpv4Size || frame->size() < at + length) return;
  (*frame)[at + 10] = (*frame)[at + 11] = 0;
  const uint16_t sum = ChecksumOf(Bytes(*frame).subspan(at, length));
  (*frame)[at + 10] = static_cast<uint8_t>(sum >> 8);
  (*frame)[at + 11] = static_cast<uint8_t>(sum);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t beyond = (data[0] & 0x7f) * size_t{512};
  const bool gso = (data[0] & 0x80) != 0;
  // A copy that ends where the frame does.
  std::vector<uint8_t> frame(data + 1, data + size);
  RightChecksum(&frame);
  const auto parsed = ParseFrame(frame, frame.size() + beyond, gso);
  if (!parsed.ok()) return 0;
  Expect(parsed->payload_offset <= frame.size());
  Expect(parsed->payload_offset + parsed->payload_length <= frame.size() + beyond);
  if (const TcpHeader* tcp = parsed->tcp()) {
    Expect(tcp->header_length >= kTcpSize && tcp->options.sack_count <= tcp->options.sack.size());
    // What was understood of it can be written, and reads the same.
    uint8_t header[80];
    Writer out(header);
    if (WriteTcp(*tcp, &out) != 0) {
      const auto again = ParseTcp(out.written());
      Expect(again.ok() && again->sequence == tcp->sequence &&
             again->options.mss == tcp->options.mss &&
             again->options.timestamps == tcp->options.timestamps &&
             again->options.sack_count == tcp->options.sack_count);
    }
  }
  if (parsed->ip.has_value()) {
    uint8_t error[1500];
    const Bytes packet = Bytes(frame).subspan(parsed->network_offset);
    const IpAddress gateway =
        parsed->ip->is_v4() ? IpAddress(Ipv4Address::Of(10, 0, 2, 2)) : IpAddress(kAllRouters);
    EthernetHeader ethernet;
    ethernet.type = parsed->ip->is_v4() ? kEtherIpv4 : kEtherIpv6;
    const size_t written = WriteIcmpError(ethernet, gateway, 3, 1, 0, packet, error);
    if (written != 0) Expect(ParseFrame(Bytes(error, written), written).ok());
  }
  return 0;
}
