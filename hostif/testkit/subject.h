// Subject: a Host with the device that is looked at, and a driver on it: what the clauses of
// CheckPlugin are made of. Owned by a clause, in its process; one thread.
#ifndef VIRTBAY_HOSTIF_TESTKIT_SUBJECT_H_
#define VIRTBAY_HOSTIF_TESTKIT_SUBJECT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "hostif/guest/driver.h"
#include "hostif/testkit/buffers.h"
#include "hostif/testkit/check.h"
#include "hostif/testkit/log_lines.h"
#include "virtbay/host.h"

namespace virtbay::testkit {

// 1 in builds with a sanitizer, which has memory of its own and keeps images mapped.
extern const bool kSanitized;

class Subject {
 public:
  // Check ready() first.
  explicit Subject(const CheckOptions& options);
  ~Subject();

  absl::Status ready() const { return ready_; }
  // Makes the device, with another one's state if there is one.
  absl::Status Add(const std::string& name = "checked", std::optional<DeviceState> state = {});
  absl::Status Remove(const std::string& name = "checked") { return host_->Remove(name); }
  // Attaches a driver that takes those of the device type's features. The one before is gone.
  absl::Status Connect(uint64_t features = ~uint64_t{0}, bool packed = false);
  void Disconnect();

  // Buffers of every shape and content on every queue, `rounds` times each, shown to the device and
  // looked at by it (but for those that it leaves on the ring, since it holds so many).
  absl::Status SendAll(uint32_t rounds, std::minstd_rand* random);
  // Internal: it has failed, with its own words for it.
  static absl::Status CheckServes(const DeviceInfo& info);
  // Stops and goes on; everything that was sent has ended or comes again. An error says which
  // requests did not end.
  absl::Status StopAndGo();
  // What the host has to say against the plugin; empty: nothing.
  std::string Accusation() const;

  Host& host() { return *host_; }
  DeviceHandle& device() { return device_; }
  guest::Driver& driver() { return *driver_; }
  Buffers& buffers() { return *buffers_; }
  const LogLines& log() const { return lines_; }

 private:
  uint64_t Taken() const;

  const CheckOptions& options_;
  LogLines lines_{LogLevel::kWarn};
  std::unique_ptr<Host> host_;
  absl::Status ready_;
  DeviceHandle device_;
  std::unique_ptr<guest::Driver> driver_;
  std::optional<Buffers> buffers_;
};

}  // namespace virtbay::testkit

#endif  // VIRTBAY_HOSTIF_TESTKIT_SUBJECT_H_
