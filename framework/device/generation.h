// Generation: the device that one image of a plugin made, behind a Device. A Device has one, and
// while it is reloaded a second one.
// Owned by its Device; [control]. What the queue threads call is copied to the DeviceCore.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_GENERATION_H_
#define VIRTBAY_FRAMEWORK_DEVICE_GENERATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/device/device_core.h"
#include "framework/plugin/plugin.h"
#include "framework/virtq/chain.h"
#include "virtbay/host.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

// A request that a crashed device had, as its driver has it: that device may have spoilt its copy.
struct HeldRequest {
  // [queue] Of a queue's chain.
  static HeldRequest From(uint16_t queue, const Chain& chain);

  uint16_t queue = 0;
  uint16_t head = 0;
  uint32_t in_total = 0;
  uint32_t out_total = 0;
  std::vector<uint8_t> in;  // the first of the readable bytes
};

class Generation {
 public:
  // Makes the plugin's device, initialises it and asks it what it is. `restores`: it will be given
  // a state. `number`: how many there are with it. Errors are the plugin's own, or name what it
  // asks for that cannot be.
  static absl::StatusOr<std::unique_ptr<Generation>> Make(DeviceCore* core,
                                                          std::shared_ptr<Plugin> plugin,
                                                          bool restores, uint32_t number = 1);
  // Lets go of the image, after Destroy.
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Destroys the plugin's device; nothing else may be called then but the accessors below.
  void Destroy();

  // A driver's session begins (Negotiate, Activate, Start) and ends (Stop, Deactivate); what the
  // plugin leaves out is passed over, and everything of one that has crashed: its rings wait then.
  absl::Status Negotiate(uint64_t features);
  absl::Status Activate() { return Call("activate", ops_.activate); }
  absl::Status Start() { return Call("start", ops_.start); }
  void Stop() { Tell("stop", ops_.stop); }
  void Deactivate() { Tell("deactivate", ops_.deactivate); }
  // Another one goes on with what it saved.
  void Release();

  // The plugin's table of an extension, or nullptr.
  const void* Extension(const char* id);
  // Its table of what saves and restores it, or nullptr.
  const virtbay_device_state* StateTable();
  // [control] Whether it lets that request be done again which another generation had when it
  // crashed. False when it crashes itself.
  bool MayRepeat(const HeldRequest& request);
  // What goes on in its place has to be like this, with the features that the driver acknowledged.
  DeviceShape Shape(uint64_t acknowledged);
  // Why it cannot go on in the place of a device of that shape, whatever its state;
  // FailedPrecondition.
  absl::Status CheckFollows(const DeviceShape& before) const;
  // Fails with what the device said by device.fail before it served.
  absl::Status EarlyFailure() const;

  Plugin& plugin() const { return *plugin_; }
  std::weak_ptr<Plugin> image() const { return plugin_; }
  virtbay_host_device* host() const { return host_.get(); }
  // Its code has crashed: no function of it is called any more, and what it knew is lost.
  bool crashed() const { return host_->crashed.load(std::memory_order_acquire); }
  virtbay_device* device() const { return device_; }
  const virtbay_device_ops& ops() const { return ops_; }
  const virtbay_device_properties& properties() const { return properties_; }
  const std::vector<virtbay_queue_properties>& queues() const { return queues_; }
  const std::string& type() const { return type_; }
  uint32_t virtio_id() const { return virtio_id_; }
  bool queue_parallel() const { return queue_parallel_; }
  // Device-type bits that it offers.
  uint64_t features() const;
  std::string name() const;
  std::string version() const;
  std::string build() const;

 private:
  Generation(DeviceCore* core, std::shared_ptr<Plugin> plugin);
  absl::Status Init();
  absl::Status Describe();
  absl::Status Call(const char* what, int32_t (*function)(virtbay_device*, virtbay_error*));
  void Tell(const char* what, void (*function)(virtbay_device*));

  std::shared_ptr<Plugin> plugin_;
  std::unique_ptr<virtbay_host_device> host_;
  virtbay_device* device_ = nullptr;
  virtbay_device_ops ops_{};
  virtbay_device_properties properties_{};
  std::vector<virtbay_queue_properties> queues_;
  std::string type_;
  uint32_t virtio_id_ = 0;
  bool queue_parallel_ = false;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_GENERATION_H_
