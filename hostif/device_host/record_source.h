// RecordSource: the requests of one device for a Recorder, as a file of hostif/record.
// Owned by the Recorder and used by its thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_RECORD_SOURCE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_RECORD_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hostif/device_host/recorder.h"
#include "hostif/record/record_file.h"
#include "virtbay/host.h"
#include "virtbay/record.h"

namespace virtbay::device_host {

class RecordSource final : public RecordingSource {
 public:
  // Begins to record: the heads of requests and answers, or all of their bytes. NotFound when the
  // device is gone, AlreadyExists while it is being recorded.
  static absl::StatusOr<std::unique_ptr<RecordSource>> Start(DeviceHandle device, bool payload);

  void Stop() override { record_->Stop(); }
  void Collect(bool full, std::string* out) override;
  void Finish(std::string* out) override;
  RecordingReport report() const override;

 private:
  RecordSource() = default;
  void PutHead(std::string* out);

  DeviceHandle device_;
  std::unique_ptr<DeviceRecord> record_;
  record::RecordHead head_;
  bool headed_ = false;
  std::vector<RequestRecord> taken_;
  uint64_t records_ = 0;
  uint64_t dropped_ = 0;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_RECORD_SOURCE_H_
