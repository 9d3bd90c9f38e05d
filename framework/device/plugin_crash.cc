#include "framework/device/plugin_crash.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "framework/device/in_flight.h"
#include "framework/device/queue.h"
#include "framework/memory/payload.h"
#include "framework/plugin/plugin.h"

namespace virtbay {
namespace {

std::string DeviceText(const virtbay_host_device& host, absl::string_view doing) {
  return absl::StrCat(doing, " of device ", host.core->spec.name, ", generation ",
                      host.generation.load(std::memory_order_relaxed));
}

// The chain as the framework has it: what the plugin was shown may not be as it was.
std::string RequestText(const InFlightRequest& request) {
  constexpr size_t kShown = 32;
  std::array<char, kShown> head;
  const size_t size = std::min<size_t>(request.chain.readable_bytes(), head.size());
  if (size > 0) {
    CopyFromSegments(request.chain.readable(), 0, head.data(), static_cast<uint32_t>(size));
  }
  return absl::StrCat("request ", request.chain.head(), ": ", request.chain.readable_bytes(),
                      " bytes to read", size > 0 ? " (" : "",
                      absl::BytesToHexString(absl::string_view(head.data(), size)),
                      size == 0                               ? ""
                      : size < request.chain.readable_bytes() ? "...)"
                                                              : ")",
                      ", ", request.chain.writable_bytes(), " to write");
}

// The first request of the batch that is not ended is the one, as a rule.
std::string BatchText(const CallbackMonitor& monitor) {
  const std::span<virtbay_request* const> batch = monitor.batch();
  std::string text;
  uint32_t open = 0;
  for (virtbay_request* const raw : batch) {
    const InFlightRequest& request = *InFlightRequest::From(raw);
    if (request.state != RequestState::kHeld) continue;
    if (++open == 1) text = absl::StrCat("  ", RequestText(request));
  }
  if (batch.size() > 1) {
    absl::StrAppend(&text, text.empty() ? "  " : "; ", open, " of a batch of ", batch.size(),
                    " not ended");
  }
  return text;
}

class CallScene final : public CrashScene {
 public:
  CallScene(const virtbay_host_device* host, absl::string_view what) : host_(host), what_(what) {}
  bool InPlugin() const override { return true; }
  std::string Describe(const Crash& crash) const override {
    return host_->plugin->CrashReport(crash, DeviceText(*host_, what_));
  }

 private:
  const virtbay_host_device* const host_;
  const absl::string_view what_;
};

// Nothing of the generation is called any more from here on.
void Crashed(virtbay_host_device* host, absl::string_view where, const Crash& crash,
             const CrashScene& scene) {
  DeviceCore* const core = host->core;
  host->crashed.store(true, std::memory_order_release);
  host->plugin->SetDamaged();
  AddContained();
  core->log.Error(scene.Describe(crash));
  core->log.Warn("the process is tainted: a plugin has crashed in it, and its image stays");
  const std::string why = absl::StrCat(where, " crashed: ", CrashText(crash));
  if (host->serves.load(std::memory_order_acquire)) {
    core->crashes.fetch_add(1, std::memory_order_relaxed);
    core->PluginFailed(why);
    return;
  }
  absl::MutexLock lock(&host->mutex);
  if (host->failure.empty()) host->failure = why;
}

}  // namespace

ControlMark::ControlMark(virtbay_host_device* host, absl::string_view what) : host_(host) {
  {
    absl::MutexLock lock(&host_->mutex);
    host_->control_name = std::string(what);
  }
  host_->control_id.store(gettid(), std::memory_order_relaxed);
  Step();
}

void ControlMark::Step() { host_->control_sequence.fetch_add(1, std::memory_order_release); }

std::string QueueScene::Describe(const Crash& crash) const {
  const std::string doing = absl::StrCat(monitor_->name(), " of queue ", monitor_->queue());
  return core_->host->plugin->CrashReport(crash, DeviceText(*core_->host, doing),
                                          BatchText(*monitor_));
}

void CallbackContained(DeviceCore* core, CallbackMonitor* monitor, absl::FunctionRef<void()> body) {
  Crash crash;
  if (CallContained(body, &crash)) return;
  Crashed(core->host, absl::StrCat("queue ", monitor->queue(), ": ", monitor->name()), crash,
          QueueScene(core, monitor));
}

absl::Status ControlGuarded(virtbay_host_device* host, absl::string_view what,
                            absl::FunctionRef<void()> body) {
  if (host->crashed.load(std::memory_order_acquire)) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": the plugin has crashed; it is called no more before a reload"));
  }
  const CallScene scene(host, what);
  const CrashScope scope(&scene);
  const ControlMark mark(host, what);
  if (!host->core->contains) {
    body();
    return absl::OkStatus();
  }
  Crash crash;
  if (CallContained(body, &crash)) return absl::OkStatus();
  Crashed(host, what, crash, scene);
  return absl::InternalError(absl::StrCat(what, ": the plugin crashed: ", CrashText(crash)));
}

void OffloadGuarded(virtbay_host_device* host, absl::FunctionRef<void()> body) {
  if (host->crashed.load(std::memory_order_acquire)) return;
  const CallScene scene(host, "offloaded work");
  const CrashScope scope(&scene);
  if (!host->core->contains) {
    body();
    return;
  }
  Crash crash;
  if (!CallContained(body, &crash)) Crashed(host, "offloaded work", crash, scene);
}

void NoteException(virtbay_host_device* host) {
  if (!host->core->contains) return;
  host->plugin->SetDamaged();
  AddContained();
  if (host->serves.load(std::memory_order_acquire)) {
    host->core->crashes.fetch_add(1, std::memory_order_relaxed);
  }
  host->core->log.Warn("the process is tainted: a plugin has thrown across its boundary");
}

}  // namespace virtbay
