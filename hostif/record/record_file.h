// A record as a file: one JSON object about the device, then its requests, answers and resets, as
// docs/record.md lays them out. What is read is hostile.
// Stateless functions on values; [any].
#ifndef VIRTBAY_HOSTIF_RECORD_RECORD_FILE_H_
#define VIRTBAY_HOSTIF_RECORD_RECORD_FILE_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "virtbay/record.h"

namespace virtbay::record {

// What was recorded.
struct RecordHead {
  std::string device;
  std::string type;
  uint32_t virtio_id = 0;
  std::string plugin;
  std::string plugin_version;
  std::string plugin_build;
  std::map<std::string, std::string> options;
  uint64_t features = 0;  // that both sides agreed on
  uint32_t queues = 0;
  uint32_t bytes = 0;  // most that were kept of a request, and of an answer
  bool whole = false;  // from the first request of the device on
};

struct RecordFile {
  RecordHead head;
  std::vector<RequestRecord> records;  // by their time
  bool cut = false;                    // ends within a record: its writer did not come to its end
};

// Appends what a file begins with.
void AppendHead(const RecordHead& head, std::string* out);
void AppendRecord(const RequestRecord& record, std::string* out);

// DataLoss, with the offset, for what is no record; but what is there of one that was cut counts.
absl::StatusOr<RecordFile> Parse(absl::string_view bytes);
// The same of a file of at most 2 GiB; what opening or reading it says.
absl::StatusOr<RecordFile> Read(const std::filesystem::path& path);
// Only what such a file begins with.
absl::StatusOr<RecordHead> ReadHead(const std::filesystem::path& path);

}  // namespace virtbay::record

#endif  // VIRTBAY_HOSTIF_RECORD_RECORD_FILE_H_
