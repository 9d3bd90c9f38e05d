#include "hostif/record/record_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"

namespace virtbay::record {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the file is little-endian");

constexpr absl::string_view kMagic = "VBRECRD1";
constexpr size_t kMostHead = size_t{1} << 20;
constexpr uint64_t kMostFile = uint64_t{2} << 30;
// A chain has no more: a table of 65536 descriptors.
constexpr uint32_t kMostPieces = 65536;

// A record as it is written: this, the lengths of its pieces (u32 each), its bytes.
struct Fixed {
  uint64_t ns;
  uint64_t id;
  uint32_t queue;
  uint32_t written;
  uint32_t readable;
  uint32_t writable;
  uint32_t bytes;
  uint32_t kind;
};
static_assert(sizeof(Fixed) == 40);

template <typename T>
void Put(const T* values, size_t count, std::string* out) {
  out->append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

absl::Status Damaged(size_t at, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("at byte ", at, ": ", what));
}

// Keys that are not there, or of another kind, are left as they are.
template <typename T>
void Take(const json& object, const char* key, T* value) {
  const auto found = object.find(key);
  if (found == object.end()) return;
  if constexpr (std::is_same_v<T, bool>) {
    if (found->is_boolean()) *value = found->get<bool>();
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (found->is_string()) *value = found->get<std::string>();
  } else {
    if (!found->is_number_unsigned()) return;
    *value = static_cast<T>(std::min<uint64_t>(found->get<uint64_t>(), ~T{0}));
  }
}

absl::StatusOr<RecordHead> ParseHead(absl::string_view text, size_t at) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Damaged(at, "the device's description is not a JSON object");
  RecordHead head;
  Take(object, "device", &head.device);
  Take(object, "type", &head.type);
  Take(object, "virtio_id", &head.virtio_id);
  Take(object, "plugin", &head.plugin);
  Take(object, "plugin_version", &head.plugin_version);
  Take(object, "plugin_build", &head.plugin_build);
  Take(object, "queues", &head.queues);
  Take(object, "bytes", &head.bytes);
  Take(object, "whole", &head.whole);
  std::string features;
  Take(object, "features", &features);
  if (!absl::SimpleHexAtoi(features, &head.features)) {
    return Damaged(at, "features: is not a hexadecimal number");
  }
  const auto options = object.find("options");
  if (options != object.end() && options->is_object()) {
    for (const auto& [key, value] : options->items()) {
      if (value.is_string()) head.options.emplace(key, value.get<std::string>());
    }
  }
  return head;
}

uint64_t MostOfRecord(const RecordHead& head) {
  return sizeof(Fixed) + uint64_t{2} * kMostPieces * sizeof(uint32_t) + head.bytes;
}

absl::StatusOr<RequestRecord> ParseRecord(absl::string_view bytes, size_t at) {
  Fixed fixed;
  std::memcpy(&fixed, bytes.data(), sizeof(fixed));
  if (fixed.kind < 1 || fixed.kind > static_cast<uint32_t>(RecordKind::kReset)) {
    return Damaged(at, absl::StrCat("a record of kind ", fixed.kind));
  }
  if (fixed.readable > kMostPieces || fixed.writable > kMostPieces) {
    return Damaged(at, "a chain of more pieces than a chain can have");
  }
  const uint64_t lengths = (uint64_t{fixed.readable} + fixed.writable) * sizeof(uint32_t);
  if (sizeof(fixed) + lengths + fixed.bytes != bytes.size()) {
    return Damaged(at, "a record whose parts do not make its length");
  }
  RequestRecord record;
  record.ns = fixed.ns;
  record.id = fixed.id;
  record.queue = fixed.queue;
  record.written = fixed.written;
  record.kind = static_cast<RecordKind>(fixed.kind);
  const char* from = bytes.data() + sizeof(fixed);
  const auto copy = [&from](std::vector<uint32_t>* to, uint32_t count) {
    if (count == 0) return;
    to->resize(count);
    std::memcpy(to->data(), from, count * sizeof(uint32_t));
    from += count * sizeof(uint32_t);
  };
  copy(&record.readable, fixed.readable);
  copy(&record.writable, fixed.writable);
  record.bytes.assign(from, fixed.bytes);
  const auto total = [](const std::vector<uint32_t>& pieces) {
    return std::accumulate(pieces.begin(), pieces.end(), uint64_t{0});
  };
  if (total(record.readable) + total(record.writable) > ~uint32_t{0}) {
    return Damaged(at, "a chain of more than 4 GiB");
  }
  if (fixed.bytes >
      (record.kind == RecordKind::kRequest ? total(record.readable) : fixed.written)) {
    return Damaged(at, "a record with more bytes than the request has");
  }
  return record;
}

// What the file begins with; `at` is where the records do.
absl::StatusOr<RecordHead> TakeHead(absl::string_view bytes, size_t* at) {
  uint32_t size = 0;
  *at = kMagic.size() + sizeof(size);
  if (bytes.size() < *at || bytes.substr(0, kMagic.size()) != kMagic) {
    return Damaged(0, "this is no record of virtbay's, or of another version");
  }
  std::memcpy(&size, bytes.data() + kMagic.size(), sizeof(size));
  if (size > kMostHead || size > bytes.size() - *at) {
    return Damaged(*at, "the device's description is cut off");
  }
  const size_t begin = std::exchange(*at, *at + size);
  return ParseHead(bytes.substr(begin, size), begin);
}

// At most the first `most` bytes of a file that is not larger than it may be.
absl::StatusOr<std::string> ReadBytes(const std::filesystem::path& path, uint64_t most) {
  // O_NONBLOCK: a FIFO without a writer must not hold the caller up.
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return ErrnoStatus(errno, path.native());
  struct stat what = {};
  if (::fstat(fd.get(), &what) != 0) return ErrnoStatus(errno, path.native());
  if (!S_ISREG(what.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path.native(), ": is not a regular file"));
  }
  if (static_cast<uint64_t>(what.st_size) > kMostFile) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.native(), ": is larger than ", kMostFile, " bytes"));
  }
  std::string bytes(std::min(static_cast<uint64_t>(what.st_size), most), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, path.native());
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

}  // namespace

void AppendHead(const RecordHead& head, std::string* out) {
  const json object{{"device", head.device},
                    {"type", head.type},
                    {"virtio_id", head.virtio_id},
                    {"plugin", head.plugin},
                    {"plugin_version", head.plugin_version},
                    {"plugin_build", head.plugin_build},
                    {"options", head.options},
                    {"features", absl::StrCat("0x", absl::Hex(head.features))},
                    {"queues", head.queues},
                    {"bytes", head.bytes},
                    {"whole", head.whole}};
  // Options are bytes of anybody's.
  const std::string text = object.dump(-1, ' ', true, json::error_handler_t::replace);
  const auto size = static_cast<uint32_t>(text.size());
  absl::StrAppend(out, kMagic);
  Put(&size, 1, out);
  absl::StrAppend(out, text);
}

void AppendRecord(const RequestRecord& record, std::string* out) {
  const Fixed fixed = {.ns = record.ns,
                       .id = record.id,
                       .queue = record.queue,
                       .written = record.written,
                       .readable = static_cast<uint32_t>(record.readable.size()),
                       .writable = static_cast<uint32_t>(record.writable.size()),
                       .bytes = static_cast<uint32_t>(record.bytes.size()),
                       .kind = static_cast<uint32_t>(record.kind)};
  const auto size = static_cast<uint32_t>(
      sizeof(fixed) + (record.readable.size() + record.writable.size()) * sizeof(uint32_t) +
      record.bytes.size());
  Put(&size, 1, out);
  Put(&fixed, 1, out);
  Put(record.readable.data(), record.readable.size(), out);
  Put(record.writable.data(), record.writable.size(), out);
  out->append(record.bytes);
}

absl::StatusOr<RecordFile> Parse(absl::string_view bytes) {
  RecordFile file;
  size_t at = 0;
  uint32_t size = 0;
  VIRTBAY_ASSIGN_OR_RETURN(file.head, TakeHead(bytes, &at));
  while (at < bytes.size()) {
    const size_t left = bytes.size() - at;
    if (left >= sizeof(size)) std::memcpy(&size, bytes.data() + at, sizeof(size));
    // More than any record of this file is not one that was cut off.
    if (left >= sizeof(size) && size > MostOfRecord(file.head)) {
      return Damaged(at, absl::StrCat("a record of ", size, " bytes, more than one can have"));
    }
    if (left < sizeof(size) || size > left - sizeof(size)) {
      file.cut = true;
      break;
    }
    if (size < sizeof(Fixed)) return Damaged(at, "a record that is shorter than one can be");
    VIRTBAY_ASSIGN_OR_RETURN(RequestRecord record,
                             ParseRecord(bytes.substr(at + sizeof(size), size), at));
    file.records.push_back(std::move(record));
    at += sizeof(size) + size;
  }
  // Queues were written one after the other.
  std::stable_sort(file.records.begin(), file.records.end(),
                   [](const RequestRecord& a, const RequestRecord& b) { return a.ns < b.ns; });
  return file;
}

absl::StatusOr<RecordFile> Read(const std::filesystem::path& path) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path, kMostFile));
  auto file = Parse(bytes);
  if (!file.ok()) return Annotate(file.status(), path.native());
  return file;
}

absl::StatusOr<RecordHead> ReadHead(const std::filesystem::path& path) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path, 2 * kMostHead));
  size_t at = 0;
  auto head = TakeHead(bytes, &at);
  if (!head.ok()) return Annotate(head.status(), path.native());
  return head;
}

}  // namespace virtbay::record
