// Samples: latencies of one measurement and their percentiles.
// Owned by the measuring thread.
#ifndef VIRTBAY_TESTS_BENCH_SAMPLES_H_
#define VIRTBAY_TESTS_BENCH_SAMPLES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace virtbay::bench {

class Samples {
 public:
  // Room for `limit` samples is made (and its pages touched) at once; beyond it every second one is
  // dropped, then every fourth, and so on.
  explicit Samples(size_t limit = size_t{1} << 20) {
    ns_.resize(limit);
    ns_.clear();
  }

  void Add(uint64_t ns) {
    if (++seen_ % stride_ != 0) return;
    if (ns_.size() == ns_.capacity()) Thin();
    ns_.push_back(static_cast<uint32_t>(std::min<uint64_t>(ns, UINT32_MAX)));
  }
  void Clear() {
    ns_.clear();
    seen_ = 0;
    stride_ = 1;
  }
  // The q-quantile in microseconds, 0 without samples; reorders the samples.
  double QuantileUs(double q) {
    if (ns_.empty()) return 0;
    const size_t at = std::min(ns_.size() - 1, static_cast<size_t>(q * double(ns_.size())));
    std::nth_element(ns_.begin(), ns_.begin() + static_cast<std::ptrdiff_t>(at), ns_.end());
    return double(ns_[at]) / 1000;
  }

 private:
  void Thin() {
    for (size_t i = 0; i < ns_.size() / 2; ++i) ns_[i] = ns_[2 * i + 1];
    ns_.resize(ns_.size() / 2);
    stride_ *= 2;
  }

  std::vector<uint32_t> ns_;
  uint64_t seen_ = 0;
  uint64_t stride_ = 1;
};

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_SAMPLES_H_
