// What becomes of a fault in a plugin's callback: the scenes that the fault handler looks at, calls
// that are contained where the host wants that, and the end of the generation that crashed.
// Scenes are on the stack of the thread that calls; functions as tagged.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_PLUGIN_CRASH_H_
#define VIRTBAY_FRAMEWORK_DEVICE_PLUGIN_CRASH_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "framework/base/contained_call.h"
#include "framework/device/callback_monitor.h"
#include "framework/device/device_core.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

// A queue thread's, for the thread's life: in the plugin whenever its monitor says so.
class QueueScene final : public CrashScene {
 public:
  QueueScene(const DeviceCore* core, const CallbackMonitor* monitor)
      : core_(core), monitor_(monitor) {}
  bool InPlugin() const override { return monitor_->sequence() % 2 != 0; }
  std::string Describe(const Crash& crash) const override;

 private:
  const DeviceCore* const core_;
  const CallbackMonitor* const monitor_;
};

// Shows the watchdog a control call.
class ControlMark {
 public:
  // [control]
  ControlMark(virtbay_host_device* host, absl::string_view what);
  ~ControlMark() { Step(); }
  ControlMark(const ControlMark&) = delete;
  ControlMark& operator=(const ControlMark&) = delete;

 private:
  void Step();
  virtbay_host_device* const host_;
};

// [queue] A callback, if the host contains crashes: a fault in it fails the device.
void CallbackContained(DeviceCore* core, CallbackMonitor* monitor, absl::FunctionRef<void()> body);

// [control] A call of the plugin's device, which is not made once it has crashed: Internal when it
// crashes now, FailedPrecondition when it did before. Exceptions pass.
absl::Status ControlGuarded(virtbay_host_device* host, absl::string_view what,
                            absl::FunctionRef<void()> body);

// [any] Offloaded work, on a thread of the pool. Exceptions pass.
void OffloadGuarded(virtbay_host_device* host, absl::FunctionRef<void()> body);

// [any] An exception has left a callback of a device whose host contains crashes: the process is
// tainted and the image stays, but the device's functions may still be called.
void NoteException(virtbay_host_device* host);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_PLUGIN_CRASH_H_
