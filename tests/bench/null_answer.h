// What the null device does with a request, for those who do it with the plugin ABI between them
// and the host, and without. Stateless; [queue].
#ifndef VIRTBAY_TESTS_BENCH_NULL_ANSWER_H_
#define VIRTBAY_TESTS_BENCH_NULL_ANSWER_H_

#include <algorithm>
#include <cstddef>
#include <span>

namespace virtbay::bench {

inline constexpr size_t kNullAnswer = 16;

// Zeros, as many as there is room for. Returns how many.
inline size_t NullAnswer(std::span<std::byte> out) {
  const size_t n = std::min(out.size(), kNullAnswer);
  std::fill_n(out.begin(), n, std::byte{0});
  return n;
}

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_NULL_ANSWER_H_
