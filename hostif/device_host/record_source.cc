#include "hostif/device_host/record_source.h"

#include <utility>

#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

constexpr uint32_t kHeadBytes = 256;
constexpr uint32_t kPayloadBytes = 16u << 20;
constexpr uint64_t kPayloadRoom = uint64_t{64} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<RecordSource>> RecordSource::Start(DeviceHandle device,
                                                                  bool payload) {
  std::unique_ptr<RecordSource> self(new RecordSource);
  RecordOptions options;
  options.bytes = payload ? kPayloadBytes : kHeadBytes;
  if (payload) options.room = kPayloadRoom;
  VIRTBAY_ASSIGN_OR_RETURN(self->record_, device.StartRecord(options));
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceInfo info, device.Inspect());
  self->head_ = {.device = info.name,
                 .type = info.type,
                 .virtio_id = info.virtio_id,
                 .plugin = info.plugin,
                 .plugin_version = info.plugin_version,
                 .plugin_build = info.plugin_build,
                 .options = info.options,
                 .features = info.features,
                 .queues = static_cast<uint32_t>(info.queues.size()),
                 .bytes = options.bytes,
                 .whole = true};
  for (const QueueStats& queue : info.queues) {
    if (queue.requests != 0) self->head_.whole = false;
  }
  self->device_ = std::move(device);
  return self;
}

void RecordSource::PutHead(std::string* out) {
  if (std::exchange(headed_, true)) return;
  // They are agreed on before the first request, but maybe after the start.
  if (const auto info = device_.Inspect(); info.ok()) head_.features = info->features;
  record::AppendHead(head_, out);
}

void RecordSource::Collect(bool full, std::string* out) {
  taken_.clear();
  record_->Take(&taken_);
  if (taken_.empty()) return;
  if (full) {
    dropped_ += taken_.size();
    return;
  }
  PutHead(out);
  for (const RequestRecord& record : taken_) record::AppendRecord(record, out);
  records_ += taken_.size();
}

void RecordSource::Finish(std::string* out) {
  PutHead(out);
  dropped_ += record_->dropped();
  record_.reset();
}

RecordingReport RecordSource::report() const {
  return {.devices = 1, .events = records_, .dropped = dropped_, .bytes = 0};
}

}  // namespace virtbay::device_host
