#include "framework/device/device_core.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"

namespace virtbay {

DeviceCore::DeviceCore(DeviceSpec device_spec, Log device_log)
    : spec(std::move(device_spec)), log(std::move(device_log)), limited_(log) {
  for (const auto& [key, value] : spec.options) option_keys.push_back(key);
}

DeviceCore::~DeviceCore() = default;

void DeviceCore::RaiseNeedsReset(absl::string_view why, bool stops) {
  {
    absl::MutexLock lock(&mutex_);
    if (failure_.empty()) failure_ = std::string(why);
    limited_.Error(absl::StrCat("device needs a reset: ", why));
  }
  if (stops) failed_.store(true, std::memory_order_relaxed);
  if (!needs_reset_.exchange(true, std::memory_order_acq_rel)) NotifyConfigChanged();
}

void DeviceCore::PluginFailed(absl::string_view why) {
  if (!trial_.load(std::memory_order_acquire)) {
    RaiseNeedsReset(why, /*stops=*/true);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    if (failure_.empty()) failure_ = std::string(why);
  }
  failed_.store(true, std::memory_order_release);
}

void DeviceCore::EndTrial(bool forgive) {
  trial_.store(false, std::memory_order_release);
  if (!failed()) return;
  if (forgive) {
    ClearFailure();
  } else {
    RaiseNeedsReset(failure(), /*stops=*/true);
  }
}

void DeviceCore::NotifyConfigChanged() {
  absl::MutexLock lock(&mutex_);
  if (events_ != nullptr) events_->OnConfigChanged();
}

void DeviceCore::ClearFailure() {
  if (host != nullptr && host->crashed.load(std::memory_order_acquire)) {
    needs_reset_.store(false, std::memory_order_release);
    return;
  }
  ForgetFailure();
}

void DeviceCore::FailAgain(absl::string_view why, bool told) {
  {
    absl::MutexLock lock(&mutex_);
    failure_ = std::string(why);
  }
  failed_.store(true, std::memory_order_relaxed);
  if (told && !needs_reset_.exchange(true, std::memory_order_acq_rel)) NotifyConfigChanged();
}

void DeviceCore::ForgetFailure() {
  absl::MutexLock lock(&mutex_);
  failure_.clear();
  failed_.store(false, std::memory_order_relaxed);
  needs_reset_.store(false, std::memory_order_release);
}

}  // namespace virtbay
