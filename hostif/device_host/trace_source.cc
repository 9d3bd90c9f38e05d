#include "hostif/device_host/trace_source.h"

#include <utility>

namespace virtbay::device_host {

void TraceSource::Add(const std::string& name, const std::string& type,
                      std::unique_ptr<DeviceTrace> trace) {
  chrome_.AddDevice(name, type, static_cast<uint32_t>(trace->Take().size()));
  traces_.push_back(std::move(trace));
  ++devices_;
}

void TraceSource::Stop() {
  for (const auto& trace : traces_) trace->Stop();
}

void TraceSource::Collect(bool full, std::string* out) {
  for (size_t i = 0; i < traces_.size(); ++i) {
    std::vector<QueueTrace> queues = traces_[i]->Take();
    if (full) {
      for (QueueTrace& queue : queues) {
        past_end_ += queue.events.size();
        queue.events.clear();
      }
    }
    chrome_.Add(static_cast<uint32_t>(i), queues);
  }
  out->append(text_);
  text_.clear();
}

void TraceSource::Finish(std::string* out) {
  traces_.clear();
  chrome_.Finish();
  out->append(text_);
  text_.clear();
}

RecordingReport TraceSource::report() const {
  return {.devices = devices_,
          .events = chrome_.events(),
          .dropped = chrome_.dropped() + past_end_,
          .bytes = 0};
}

}  // namespace virtbay::device_host
