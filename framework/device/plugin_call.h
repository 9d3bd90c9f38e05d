// Calls into a plugin: marked for the watchdog, and with a net for exceptions that a plugin lets
// escape although its contract forbids it, and for crashes where the host contains them.
// Stateless; [queue] and [control] as named.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_PLUGIN_CALL_H_
#define VIRTBAY_FRAMEWORK_DEVICE_PLUGIN_CALL_H_

#include <pthread.h>

#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/device/callback_monitor.h"
#include "framework/device/device_core.h"
#include "framework/device/plugin_crash.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

// [queue] An exception fails the device. A plugin that has crashed is called no more.
template <typename F>
void CallOnQueue(DeviceCore* core, CallbackMonitor* monitor, const char* name, uint32_t queue,
                 F&& body) noexcept {
  if (core->failed() && core->host->crashed.load(std::memory_order_acquire)) [[unlikely]]
    return;
  CallbackMonitor::Scope scope(monitor, name, queue);
  try {
    if (core->contains) [[unlikely]] {
      CallbackContained(core, monitor, body);
    } else {
      body();
    }
  } catch (const std::exception& e) {
    NoteException(core->host);
    core->PluginFailed(absl::StrCat("queue ", queue, ": ", name, " threw: ", e.what()));
  } catch (...) {
    NoteException(core->host);
    core->PluginFailed(absl::StrCat("queue ", queue, ": ", name, " threw"));
  }
}

// [control] Runs `body(virtbay_error*)` and turns its code, text, exception or crash into a Status
// that begins with `what`.
template <typename F>
absl::Status CallOnControl(virtbay_host_device* host, absl::string_view what, F&& body) {
  virtbay_error error{};
  error.struct_size = sizeof(error);
  host->control_thread.store(static_cast<uint64_t>(pthread_self()), std::memory_order_relaxed);
  absl::Status status;
  try {
    int32_t code = VIRTBAY_OK;
    status = ControlGuarded(host, what, [&] { code = body(&error); });
    if (status.ok() && code != VIRTBAY_OK) {
      error.text[sizeof(error.text) - 1] = '\0';
      const char* text = error.text[0] != '\0' ? error.text : "the plugin gave no reason";
      const bool known = code > 0 && code <= VIRTBAY_UNAVAILABLE;
      status =
          absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                       absl::StrCat(what, ": ", text));
    }
  } catch (const std::exception& e) {
    NoteException(host);
    status = absl::InternalError(absl::StrCat(what, ": the plugin threw: ", e.what()));
  } catch (...) {
    NoteException(host);
    status = absl::InternalError(absl::StrCat(what, ": the plugin threw"));
  }
  host->control_thread.store(0, std::memory_order_relaxed);
  return status;
}

// [control] The same of the generation that serves.
template <typename F>
absl::Status CallOnControl(DeviceCore* core, absl::string_view what, F&& body) {
  return CallOnControl(core->host, what, std::forward<F>(body));
}

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_PLUGIN_CALL_H_
