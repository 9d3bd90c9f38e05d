// Fuzz target: what a guest may say to the gateway. The input is a series of frames, each behind
// two bytes of length; checksums are the device's to fill, so that they stop nothing. In the end
// the state is saved and restored, and the input is tried as a state.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "plugins/proxy-net/lan/lan.h"
#include "plugins/proxy-net/packet/checksum.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace virtbay::proxy_net;

void Expect(bool holds) {
  if (!holds) abort();
}

LanConfig Config() {
  LanConfig config;
  config.pool_size = 4;
  config.domain = *DomainName::Parse("example.org");
  config.search = {*config.domain, *DomainName::Parse("lab.example.org")};
  config.hostname = "guest";
  return config;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Whatever is sent is a frame that a guest can read.
  const auto check = [](Bytes frame) { Expect(ParseFrame(frame, frame.size()).ok()); };
  Lan lan(Config(), check);
  uint64_t now_ns = kSecondNs;
  lan.SetIpv6(true, now_ns);
  Reader in(Bytes(data, size));
  while (in.left() > 2) {
    size_t length = in.U16();
    if (length > in.left()) length = in.left();
    const Bytes taken = in.Take(length);
    std::vector<uint8_t> frame(taken.begin(), taken.end());
    if (frame.size() >= 34 && frame[12] == 8 && frame[13] == 0 && frame[14] == 0x45) {
      frame[24] = frame[25] = 0;
      const uint16_t sum = ChecksumOf(Bytes(frame).subspan(14, 20));
      frame[24] = static_cast<uint8_t>(sum >> 8);
      frame[25] = static_cast<uint8_t>(sum);
    }
    const auto parsed = ParseFrame(frame, frame.size());
    if (!parsed.ok()) continue;
    if (lan.Wants(*parsed)) {
      lan.OnFrame(*parsed, frame, false, now_ns);
    } else {
      lan.Learn(*parsed, now_ns);
    }
    now_ns += kSecondNs;
    lan.OnTime(now_ns);
  }
  const std::vector<uint8_t> state = lan.Save(now_ns);
  Lan other(Config(), check);
  Expect(other.Restore(state, now_ns).ok());
  Expect(other.Save(now_ns) == state);
  Lan hostile(Config(), check);
  (void)hostile.Restore(Bytes(data, size), now_ns);
  (void)hostile.Save(now_ns);
  lan.Shutdown(now_ns);
  return 0;
}
