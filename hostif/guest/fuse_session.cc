#include "hostif/guest/fuse_session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::guest {
namespace {

// Room for the slots, rings and indirect tables of every queue, with a margin for what a test
// allocates beside.
uint64_t MemoryFor(const FuseSessionOptions& options, uint32_t request_queues,
                   uint32_t indirect_max) {
  const uint64_t slot = options.queue.max_data + 4096 + 2 * FuseSlot::kArgsSize + 4096;
  const uint64_t ring = uint64_t{options.queue_size} * (16 + 2 + 8 + 16 * indirect_max) + 32768;
  const uint64_t sum = uint64_t{request_queues} * options.queue.depth * slot +
                       options.hiprio_depth * uint64_t{65536} + (request_queues + 1) * ring +
                       (uint64_t{4} << 20);
  return (sum + 0x1f'ffff) & ~uint64_t{0x1f'ffff};
}

}  // namespace

absl::StatusOr<std::unique_ptr<FuseSession>> FuseSession::Create(
    std::unique_ptr<Transport> transport, FuseSessionOptions options) {
  std::unique_ptr<FuseSession> session(new FuseSession());
  VirtioFsConfig config;
  const absl::Status known =
      transport->ReadConfig(0, std::as_writable_bytes(std::span(&config, 1))
                                   .first(offsetof(VirtioFsConfig, notify_buf_size)));
  if (known.ok()) {
    session->tag_.assign(config.tag, ::strnlen(config.tag, sizeof(config.tag)));
    session->configured_queues_ = config.num_request_queues;
  }
  uint32_t count = options.request_queues;
  if (count == 0) count = session->configured_queues_;
  if (count == 0) count = 1;
  if (count > 64) return absl::InvalidArgumentError(absl::StrCat(count, " request queues"));

  DriverOptions driver;
  driver.queue_count = 1 + count;
  driver.queue_size = options.queue_size;
  driver.event_idx = options.event_idx;
  driver.packed = options.packed;
  const uint32_t pages = options.queue.max_data / options.queue.page_size + 5;
  driver.indirect_max =
      options.indirect ? static_cast<uint16_t>(std::min<uint32_t>(pages, options.queue_size)) : 0;
  if (options.memory == nullptr) {
    VIRTBAY_ASSIGN_OR_RETURN(options.memory,
                             GuestMemory::Create(MemoryFor(options, count, driver.indirect_max)));
  }
  VIRTBAY_ASSIGN_OR_RETURN(session->driver_,
                           Driver::Create(std::move(transport), std::move(options.memory), driver));

  FuseQueueOptions hiprio = options.queue;
  hiprio.depth = options.hiprio_depth;
  hiprio.max_data = 4096;
  VIRTBAY_ASSIGN_OR_RETURN(session->hiprio_, FuseQueue::Create(session->driver_.get(), 0, hiprio));
  session->hiprio_client_ =
      std::make_unique<FuseClient>(session->hiprio_.get(), session->init_.get());
  for (uint32_t i = 0; i < count; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(auto queue,
                             FuseQueue::Create(session->driver_.get(), 1 + i, options.queue));
    session->queues_.push_back(std::move(queue));
    session->clients_.emplace_back(session->queues_.back().get(), session->init_.get());
  }
  session->init_flags_ = options.init_flags;
  if (options.negotiated.has_value()) {
    *session->init_ = *options.negotiated;
    return session;
  }
  if (options.init) VIRTBAY_RETURN_IF_ERROR(session->Init());
  return session;
}

absl::Status FuseSession::Init() {
  const FuseReply<fuse_init_out> reply = client(0).Init(init_flags_);
  if (reply.ok()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the device refused FUSE INIT: ", reply.error));
}

absl::Status FuseSession::Restart() {
  VIRTBAY_RETURN_IF_ERROR(driver_->Restart());
  hiprio_->Abandon();
  for (const auto& queue : queues_) queue->Abandon();
  return Init();
}

}  // namespace virtbay::guest
