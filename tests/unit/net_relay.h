// What net_relay.cc, a network device of the tests, and its tests say to each other over a socket
// that keeps messages apart: each is a record, then the frame.
// Plain data.
#ifndef VIRTBAY_TESTS_UNIT_NET_RELAY_H_
#define VIRTBAY_TESTS_UNIT_NET_RELAY_H_

#include <cstdint>

namespace virtbay::testing {

struct RelayRecord {
  uint8_t needs_csum = 0;
  uint8_t data_valid = 0;
  uint8_t ecn = 0;
  uint8_t gso = 0;  // sdk::Gso
  uint16_t gso_size = 0;
  uint16_t hdr_len = 0;
  uint16_t csum_start = 0;
  uint16_t csum_offset = 0;
  // To the device: bytes that go into the frame's header space; the rest is received behind them.
  // From it: bytes that TxFrame::headers() showed.
  uint16_t header_len = 0;
  // To the device. 1: as bytes of its own, not received; 2: without waiting for enough buffers.
  uint8_t how = 0;
  uint8_t pair = 0;
};
static_assert(sizeof(RelayRecord) == 16);

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_NET_RELAY_H_
