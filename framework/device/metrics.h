// Metrics: a device's named 64-bit cells, counters and gauges, handed to its plugin and reported by
// Inspect. Owned by the device. Registering and reading are [any]; the cells are plain words that
// their users change with relaxed atomics.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_METRICS_H_
#define VIRTBAY_FRAMEWORK_DEVICE_METRICS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "virtbay/host.h"

namespace virtbay {

class Metrics {
 public:
  static constexpr uint32_t kMaxCells = 256;

  // The cell of that name, made at the first call, which says what it is; nullptr for a name that
  // is not lower_snake (at most 64 characters) or when there are kMaxCells others.
  uint64_t* Cell(absl::string_view name, absl::string_view help,
                 MetricKind kind = MetricKind::kCounter) {
    if (!ValidName(name)) return nullptr;
    absl::MutexLock lock(&mutex_);
    auto found = index_.find(std::string(name));
    if (found != index_.end()) return &cells_[found->second];
    if (index_.size() == kMaxCells) return nullptr;
    const auto at = static_cast<uint32_t>(index_.size());
    index_.emplace(name, at);
    help_.emplace(name, help);
    kinds_.emplace(name, kind);
    return &cells_[at];
  }

  std::map<std::string, uint64_t> Values() {
    absl::MutexLock lock(&mutex_);
    std::map<std::string, uint64_t> values;
    for (const auto& [name, at] : index_) {
      values[name] = std::atomic_ref<uint64_t>(cells_[at]).load(std::memory_order_relaxed);
    }
    return values;
  }
  std::map<std::string, std::string> Help() {
    absl::MutexLock lock(&mutex_);
    return help_;
  }
  std::map<std::string, MetricKind> Kinds() {
    absl::MutexLock lock(&mutex_);
    return kinds_;
  }

 private:
  static bool ValidName(absl::string_view name) {
    if (name.empty() || name.size() > 64 || name[0] < 'a' || name[0] > 'z') return false;
    for (const char c : name) {
      if ((c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_') return false;
    }
    return true;
  }

  absl::Mutex mutex_;
  std::map<std::string, uint32_t> index_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> help_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, MetricKind> kinds_ ABSL_GUARDED_BY(mutex_);
  std::array<uint64_t, kMaxCells> cells_{};  // addresses stay for the device's life
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_METRICS_H_
