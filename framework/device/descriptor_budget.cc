#include "framework/device/descriptor_budget.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

namespace virtbay {
namespace {

constexpr uint64_t kHighest = uint64_t{1} << 24;
// A device has at most so many times what it leaves of the common part to the others.
constexpr int64_t kGreed = 4;

// Descriptors that the process has open; 0 when it cannot be seen.
uint32_t CountOpen() {
  struct stat info {};
  // Linux 6.2 and later tell at once.
  if (stat("/proc/self/fd", &info) == 0 && info.st_size > 0) {
    return static_cast<uint32_t>(info.st_size);
  }
  DIR* const dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  uint32_t count = 0;
  while (const dirent* entry = readdir(dir)) count += entry->d_name[0] != '.';
  closedir(dir);
  return count - 1;  // the one that this looked with
}

}  // namespace

DescriptorBudget::Share::Share(std::shared_ptr<DescriptorBudget> budget)
    : budget_(std::move(budget)) {
  absl::MutexLock lock(&budget_->mutex_);
  budget_->shares_.push_back(this);
  budget_->Measure();
}

DescriptorBudget::Share::~Share() {
  absl::MutexLock lock(&budget_->mutex_);
  budget_->common_free_.fetch_add(Common(word_.load()), std::memory_order_relaxed);
  budget_->control_.fetch_sub(control_.load(), std::memory_order_relaxed);
  std::erase(budget_->shares_, this);
  budget_->Measure();
}

uint32_t DescriptorBudget::Share::Counted() const {
  // What was opened of a part that was larger before counts as well. What is only kept of it does
  // not: devices that use all of that at once, of a thousand, find out when they open.
  const uint64_t word = word_.load(std::memory_order_relaxed);
  const auto own = static_cast<int32_t>(Held(word) - Common(word));
  const int32_t opened = own - std::clamp(kept_.load(std::memory_order_relaxed), 0, own);
  return std::max(guaranteed(), static_cast<uint32_t>(opened));
}

bool DescriptorBudget::Share::Take(Use use) {
  uint64_t word = word_.load(std::memory_order_relaxed);
  while (Held(word) < guaranteed() + Common(word)) {
    if (word_.compare_exchange_weak(word, word + 1, std::memory_order_relaxed)) return true;
  }
  if (use == Use::kOwn || !budget_->TakeCommon(use, Common(word))) {
    if (use == Use::kControl) refused_.store(true, std::memory_order_relaxed);
    return false;
  }
  word_.fetch_add((uint64_t{1} << 32) + 1, std::memory_order_relaxed);
  if (use == Use::kControl) {
    control_.fetch_add(1, std::memory_order_relaxed);
    budget_->control_.fetch_add(1, std::memory_order_relaxed);
  }
  return true;
}

void DescriptorBudget::Share::Give(Use use) {
  uint64_t word = word_.load(std::memory_order_relaxed);
  bool common = false;
  uint64_t next = 0;
  do {
    if (Held(word) == 0) return;  // a plugin that gives more than it took
    common = Common(word) > 0;
    next = word - 1 - (common ? uint64_t{1} << 32 : 0);
  } while (!word_.compare_exchange_weak(word, next, std::memory_order_relaxed));
  if (!common) return;
  budget_->common_free_.fetch_add(1, std::memory_order_relaxed);
  uint32_t control = control_.load(std::memory_order_relaxed);
  while (control > 0 && (use == Use::kControl || control > Common(next))) {
    if (!control_.compare_exchange_weak(control, control - 1, std::memory_order_relaxed)) continue;
    budget_->control_.fetch_sub(1, std::memory_order_relaxed);
    break;
  }
}

void DescriptorBudget::Share::SetRoom(uint32_t room) {
  absl::MutexLock lock(&budget_->mutex_);
  room_ = room;
  budget_->Measure();
}

uint32_t DescriptorBudget::Share::LimitNeeded() const {
  // A device that was refused some would have gone on asking, and is not given the last ones.
  const int64_t each = refused() ? kLeastGuaranteed + kNeeded : kNeeded;
  absl::MutexLock lock(&budget_->mutex_);
  const Process now = budget_->Look();
  const auto [others, room] = budget_->Others(now);
  const auto wanted = each * static_cast<int64_t>(budget_->shares_.size());
  uint32_t limit = refused() ? now.limit + 1 : now.limit;
  while (limit < kHighest && ForDevices(limit, others, room) < wanted) ++limit;
  return limit;
}

bool DescriptorBudget::TakeCommon(Share::Use use, uint32_t has) {
  const int64_t growth = growth_.load(std::memory_order_relaxed);
  int64_t kept = 0;
  if (use != Share::Use::kControl) kept = KeptFromGuests();
  if (use == Share::Use::kCached) {
    kept = std::max(kept, common_total_.load(std::memory_order_relaxed) / 2);
  }
  const bool shares = use != Share::Use::kControl && several_.load(std::memory_order_relaxed);
  int64_t free = common_free_.load(std::memory_order_relaxed);
  do {
    if (free <= kept || (shares && has >= kGreed * (free - growth))) return false;
  } while (!common_free_.compare_exchange_weak(free, free - 1, std::memory_order_relaxed));
  return true;
}

int64_t DescriptorBudget::KeptFromGuests() const {
  const int64_t growth = growth_.load(std::memory_order_relaxed);
  const int64_t total = common_total_.load(std::memory_order_relaxed);
  const int64_t control = std::max<int64_t>(control_.load(std::memory_order_relaxed), 0);
  // How far the devices themselves are into the last of it: then half of what they leave is kept.
  const int64_t into = std::clamp<int64_t>(control - (total - 2 * growth), 0, control);
  return std::max<int64_t>(growth - (into + 1) / 2, 0);
}

DescriptorBudget::Process DescriptorBudget::Look() const {
  if (process_ != nullptr) return *process_;
  Process now;
  rlimit limit{1024, 1024};
  getrlimit(RLIMIT_NOFILE, &limit);
  now.limit = static_cast<uint32_t>(std::min<uint64_t>(limit.rlim_cur, kHighest));
  now.open = CountOpen();
  return now;
}

std::pair<int64_t, int64_t> DescriptorBudget::Others(const Process& now) const {
  int64_t others = now.open;
  int64_t room = 0;
  for (const Share* share : shares_) {
    const int64_t held = share->held();
    others -= held - std::clamp<int64_t>(share->kept_.load(std::memory_order_relaxed), 0, held);
    room += share->room_;
  }
  return {others, room};
}

void DescriptorBudget::Measure() {
  const Process now = Look();
  const auto [others, room] = Others(now);
  const int64_t devices = ForDevices(now.limit, others, room);
  const auto count = static_cast<int64_t>(std::max<size_t>(shares_.size(), 1));
  const int64_t equal = std::max<int64_t>(devices / count, 0);
  const auto each = static_cast<uint32_t>(
      std::min<int64_t>(equal, std::clamp<int64_t>(equal / 2, kLeastGuaranteed, kGuaranteed)));
  int64_t total = devices;
  for (Share* share : shares_) {
    share->guaranteed_.store(std::min(share->guaranteed(), each), std::memory_order_relaxed);
    total -= share->Counted();
  }
  const int64_t before = common_total_.exchange(total, std::memory_order_relaxed);
  growth_.store(Growth(now.limit), std::memory_order_relaxed);
  several_.store(shares_.size() > 1, std::memory_order_relaxed);
  // What is taken stays taken.
  common_free_.fetch_add(total - before, std::memory_order_relaxed);
  for (Share* share : shares_) Raise(share, each);
}

void DescriptorBudget::Raise(Share* share, uint32_t each) {
  const uint32_t counted = share->Counted();
  int64_t free = common_free_.load(std::memory_order_relaxed);
  uint32_t raised = 0;
  do {
    if (free <= 0 || share->guaranteed() >= each) return;
    // Beyond the least only half of what is left, so that those who come after get something too.
    const auto half = static_cast<uint32_t>(std::min<int64_t>(free / 2, kGuaranteed));
    const uint32_t want = std::min(each, std::max(kLeastGuaranteed, counted + half));
    raised = std::max(
        counted,
        std::min(want, counted + static_cast<uint32_t>(std::min<int64_t>(free, kGuaranteed))));
  } while (!common_free_.compare_exchange_weak(free, free - (raised - counted),
                                               std::memory_order_relaxed));
  common_total_.fetch_sub(raised - counted, std::memory_order_relaxed);
  // What it has open of a part that was larger before is no more than was counted.
  share->guaranteed_.store(std::min(raised, each), std::memory_order_relaxed);
}

}  // namespace virtbay
