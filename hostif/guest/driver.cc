#include "hostif/guest/driver.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"
#include "virtbay/device_port.h"

namespace virtbay::guest {

absl::StatusOr<std::unique_ptr<Driver>> Driver::Create(std::unique_ptr<Transport> transport,
                                                       std::unique_ptr<GuestMemory> memory,
                                                       const DriverOptions& options) {
  std::unique_ptr<Driver> driver(new Driver(std::move(transport), std::move(memory), options));
  VIRTBAY_RETURN_IF_ERROR(driver->Negotiate());
  VIRTBAY_RETURN_IF_ERROR(driver->transport_->SetMemory(*driver->memory_));
  VIRTBAY_RETURN_IF_ERROR(driver->MakeQueues());
  if (options.start) VIRTBAY_RETURN_IF_ERROR(driver->Start());
  return driver;
}

Driver::~Driver() = default;

absl::Status Driver::Negotiate() {
  VIRTBAY_RETURN_IF_ERROR(transport_->SetStatus(0));
  status_ = kStatusAcknowledge;
  VIRTBAY_RETURN_IF_ERROR(transport_->SetStatus(status_));
  status_ |= kStatusDriver;
  VIRTBAY_RETURN_IF_ERROR(transport_->SetStatus(status_));
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t offered, transport_->GetFeatures());
  if ((offered & kFeatureVersion1) == 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the device does not offer VERSION_1 (features 0x%x)", offered));
  }
  uint64_t wanted = options_.device_features | kFeatureVersion1;
  if (options_.indirect_max != 0) wanted |= kFeatureIndirectDesc;
  if (options_.event_idx) wanted |= kFeatureEventIdx;
  uint64_t needed = 0;
  if (options_.packed) needed |= kFeatureRingPacked;
  if (options_.in_order) needed |= kFeatureInOrder;
  if (options_.ring_reset) needed |= kFeatureRingReset;
  if ((needed & ~offered) != 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the device does not offer the features 0x%x", needed & ~offered));
  }
  features_ = (offered & wanted) | needed;
  VIRTBAY_RETURN_IF_ERROR(transport_->SetFeatures(features_));
  status_ |= kStatusFeaturesOk;
  VIRTBAY_RETURN_IF_ERROR(transport_->SetStatus(status_));
  VIRTBAY_ASSIGN_OR_RETURN(const uint8_t kept, transport_->GetStatus());
  if ((kept & kStatusFeaturesOk) == 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the device refused the features 0x%x", features_));
  }
  return absl::OkStatus();
}

absl::Status Driver::MakeQueues() {
  const uint32_t count =
      options_.queue_count != 0 ? options_.queue_count : transport_->queue_count();
  if (count == 0) return absl::InvalidArgumentError("the number of queues is not known");
  const uint32_t known = transport_->queue_count();
  if (known != 0 && count > known) {
    return absl::InvalidArgumentError(
        absl::StrCat("the device has ", known, " queues, not ", count));
  }
  for (uint32_t i = 0; i < count; ++i) {
    QueueOptions options;
    options.ring.size = options_.queue_size;
    const uint16_t most = transport_->max_queue_size(i);
    if (most != 0 && most < options.ring.size) options.ring.size = most;
    options.ring.packed = options_.packed;
    options.ring.in_order = options_.in_order;
    options.ring.event_idx = (features_ & kFeatureEventIdx) != 0;
    options.ring.indirect_max =
        (features_ & kFeatureIndirectDesc) != 0 ? options_.indirect_max : uint16_t{0};
    options.kick_fd = options_.kick_fds;
    options.call_fd = options_.call_fds;
    VIRTBAY_ASSIGN_OR_RETURN(auto queue, DriverQueue::Create(memory_.get(), options));
    const uint32_t base = queue->ring().first_base();
    queues_.push_back(Queue{.queue = std::move(queue), .base = base, .started = false});
  }
  return absl::OkStatus();
}

absl::Status Driver::StartQueue(uint32_t index) {
  Queue& queue = queues_[index];
  RingStart start;
  start.size = queue.queue->ring().size();
  start.base = queue.base;
  start.addresses = queue.queue->ring().addresses();
  start.kick_fd = queue.queue->kick_fd();
  start.call_fd = queue.queue->call_fd();
  start.error_fd = queue.queue->error_fd();
  const absl::Status status = transport_->StartQueue(index, start);
  if (!status.ok()) return Annotate(status, absl::StrCat("starting queue ", index));
  queue.started = true;
  return absl::OkStatus();
}

absl::Status Driver::Start() {
  for (uint32_t i = 0; i < queue_count(); ++i) {
    if (!queues_[i].started) VIRTBAY_RETURN_IF_ERROR(StartQueue(i));
  }
  status_ |= kStatusDriverOk;
  return transport_->SetStatus(status_);
}

absl::Status Driver::ResetQueue(uint32_t index) {
  if (index >= queue_count()) {
    return absl::OutOfRangeError(absl::StrCat("the driver has no queue ", index));
  }
  VIRTBAY_RETURN_IF_ERROR(transport_->ResetQueue(index));
  Queue& queue = queues_[index];
  queue.queue->Reset();
  queue.base = queue.queue->ring().first_base();
  queue.started = false;
  return StartQueue(index);
}

absl::Status Driver::Stop() {
  for (uint32_t i = 0; i < queue_count(); ++i) {
    if (!queues_[i].started) continue;
    const absl::StatusOr<uint32_t> base = transport_->StopQueue(i);
    if (!base.ok()) return Annotate(base.status(), absl::StrCat("stopping queue ", i));
    queues_[i].base = *base;
    queues_[i].started = false;
  }
  return absl::OkStatus();
}

absl::Status Driver::Restart() {
  VIRTBAY_RETURN_IF_ERROR(transport_->Reset());
  for (Queue& queue : queues_) {
    queue.queue->Reset();
    queue.base = queue.queue->ring().first_base();
    queue.started = false;
  }
  VIRTBAY_RETURN_IF_ERROR(Negotiate());
  VIRTBAY_RETURN_IF_ERROR(transport_->SetMemory(*memory_));
  return Start();
}

absl::Status Driver::Reconnect(std::unique_ptr<Transport> transport) {
  transport_ = std::move(transport);
  for (Queue& queue : queues_) {
    queue.started = false;
    queue.base = queue.queue->ring().reconnect_base();
  }
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t offered, transport_->GetFeatures());
  if ((features_ & ~offered) != 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the device does not offer the features 0x%x", features_ & ~offered));
  }
  VIRTBAY_RETURN_IF_ERROR(transport_->SetFeatures(features_));
  VIRTBAY_RETURN_IF_ERROR(transport_->SetMemory(*memory_));
  return Start();
}

}  // namespace virtbay::guest
