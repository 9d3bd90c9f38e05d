// TraceSource: the traces of devices for a Recorder, as Chrome trace JSON.
// Owned by the Recorder and used by its thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_TRACE_SOURCE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_TRACE_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hostif/device_host/recorder.h"
#include "hostif/trace/chrome_trace.h"
#include "virtbay/trace.h"

namespace virtbay::device_host {

class TraceSource final : public RecordingSource {
 public:
  TraceSource() : chrome_(&text_) {}

  void Add(const std::string& name, const std::string& type, std::unique_ptr<DeviceTrace> trace);

  void Stop() override;
  void Collect(bool full, std::string* out) override;
  void Finish(std::string* out) override;
  RecordingReport report() const override;

 private:
  std::vector<std::unique_ptr<DeviceTrace>> traces_;
  uint64_t devices_ = 0;
  uint64_t past_end_ = 0;  // events that the file had no room for
  std::string text_;
  trace::ChromeTrace chrome_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_TRACE_SOURCE_H_
