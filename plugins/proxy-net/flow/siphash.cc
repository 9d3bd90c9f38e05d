#include "plugins/proxy-net/flow/siphash.h"

#include <sys/random.h>
#include <time.h>

#include <bit>
#include <cerrno>

namespace virtbay::proxy_net {
namespace {

struct State {
  uint64_t v0, v1, v2, v3;

  void Round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }
};

uint64_t LittleEndian(const uint8_t* bytes, size_t n) {
  uint64_t word = 0;
  for (size_t i = 0; i < n; ++i) word |= uint64_t{bytes[i]} << (8 * i);
  return word;
}

}  // namespace

SipKey SipKey::Random() {
  SipKey key;
  auto* at = reinterpret_cast<uint8_t*>(&key);
  size_t done = 0;
  while (done < sizeof(key)) {
    const ssize_t n = getrandom(at + done, sizeof(key) - done, 0);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      // No kernel that runs this lacks the call; where a filter forbids it, the address layout and
      // the clock are what is left.
      timespec now = {};
      clock_gettime(CLOCK_MONOTONIC, &now);
      key.k0 ^= static_cast<uint64_t>(now.tv_nsec) * 0x9e3779b97f4a7c15u;
      key.k1 ^= reinterpret_cast<uintptr_t>(&now);
      break;
    }
  }
  return key;
}

uint64_t SipHash(const SipKey& key, Bytes bytes) {
  State s = {key.k0 ^ 0x736f6d6570736575u, key.k1 ^ 0x646f72616e646f6du,
             key.k0 ^ 0x6c7967656e657261u, key.k1 ^ 0x7465646279746573u};
  const size_t whole = bytes.size() & ~size_t{7};
  for (size_t at = 0; at < whole; at += 8) {
    const uint64_t word = LittleEndian(bytes.data() + at, 8);
    s.v3 ^= word;
    s.Round();
    s.Round();
    s.v0 ^= word;
  }
  const uint64_t last = LittleEndian(bytes.data() + whole, bytes.size() - whole) |
                        static_cast<uint64_t>(bytes.size()) << 56;
  s.v3 ^= last;
  s.Round();
  s.Round();
  s.v0 ^= last;
  s.v2 ^= 0xff;
  for (int i = 0; i < 4; ++i) s.Round();
  return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

}  // namespace virtbay::proxy_net
