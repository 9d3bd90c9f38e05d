// Bay: one device of a plugin file with a driver of its own, in this process and without a VMM: for
// the tests of a plugin. The host is the real one: arena, rings, threads and I/O are as a VMM's
// guest has them.
// Owned by a test; every function is [control], from one thread at a time.
#ifndef VIRTBAY_TESTKIT_BAY_H_
#define VIRTBAY_TESTKIT_BAY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "virtbay/sdk/result.h"

namespace virtbay::testkit {

/// What to load, and how the driver behaves.
struct BayOptions {
  std::string plugin;                          ///< the file, or a name to look up
  std::string type;                            ///< device type; empty: the plugin's only one
  std::map<std::string, std::string> options;  ///< the device's own
  uint64_t features = ~uint64_t{0};      ///< device-type bits that the driver takes where offered
  uint64_t memory = uint64_t{32} << 20;  ///< bytes of the guest's memory
  uint16_t queue_size = 256;             ///< cut to what the device allows
  bool packed = false;                   ///< packed rings (virtio 1.3 2.8)
  bool event_idx = true;                 ///< VIRTIO_F_EVENT_IDX
  bool one_thread = false;  ///< for all queues, even where the plugin would have them in parallel
};

/// What came back for one buffer.
struct Reply {
  uint32_t written = 0;  ///< bytes the device says it wrote
  std::string bytes;     ///< the writable bytes, all of them; what is untouched is 0xEE
};

/// See above.
class __attribute__((visibility("default"))) Bay {
 public:
  /// Loads the plugin, makes the device and negotiates. The error is the host's or the plugin's.
  static sdk::Result<std::unique_ptr<Bay>> Create(BayOptions options);
  ~Bay();
  Bay(const Bay&) = delete;
  Bay& operator=(const Bay&) = delete;

  /// Shows the device a buffer: `readable` bytes, then room for so many. A token; 0: the ring or
  /// the memory is full.
  uint64_t Send(std::string_view readable, uint32_t room, uint32_t queue = 0);
  /// The same with a descriptor for each of these lengths; `readable` fills the first ones.
  uint64_t SendPieces(std::string_view readable, std::span<const uint32_t> in,
                      std::span<const uint32_t> out, uint32_t queue = 0);
  /// Whether it has come back.
  bool Has(uint64_t token, uint32_t queue = 0);
  /// Waits for it, at most so long.
  sdk::Result<Reply> Take(uint64_t token, uint32_t queue = 0, uint32_t seconds = 30);
  /// Send and Take.
  sdk::Result<Reply> Call(std::string_view readable, uint32_t room, uint32_t queue = 0);

  /// virtio 1.3 2.5.
  sdk::Status ReadConfig(uint32_t offset, void* data, uint32_t size);
  /// virtio 1.3 2.5.
  sdk::Status WriteConfig(uint32_t offset, const void* data, uint32_t size);
  /// A value of the configuration space; zero when it cannot be read.
  template <typename T>
  T Config(uint32_t offset = 0) {
    T value{};
    if (!ReadConfig(offset, &value, sizeof(value)).ok()) value = T{};
    return value;
  }
  /// Waits for the device's announcement that it has changed.
  bool WaitForConfigChange(uint32_t seconds = 30);
  /// What both sides agreed on.
  uint64_t features() const;
  uint32_t queue_count() const;  ///< of the device
  bool needs_reset();            ///< DEVICE_NEEDS_RESET (virtio 1.3 2.1.2)
  std::string failure() const;   ///< why it does

  /// Stops every queue: requests end, or come again after Start.
  sdk::Status Stop();
  /// Goes on after Stop.
  sdk::Status Start();
  /// Resets the device and begins anew; what was under way is forgotten.
  sdk::Status Reset();
  /// The device's place is taken by another one with these options, which goes on with its state;
  /// the driver begins anew.
  sdk::Status HandOver(std::map<std::string, std::string> options);
  /// Has the device carry out a command, as `virtbay ctl device` does.
  sdk::Result<std::string> Control(const std::string& command, std::string_view text);

  /// Buffers that the device has taken since it was made, of all queues.
  uint64_t taken() const;
  /// A counter or gauge of the device; ~0 when there is none of that name.
  uint64_t Metric(const std::string& name) const;
  /// "level name: text" of every line that host and device logged.
  std::vector<std::string> log() const;

 private:
  struct Impl;
  explicit Bay(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace virtbay::testkit

#endif  // VIRTBAY_TESTKIT_BAY_H_
