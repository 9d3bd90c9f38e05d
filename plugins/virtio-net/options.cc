#include "plugins/virtio-net/options.h"

#include <net/if.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace virtbay::virtio_net {
namespace {

using sdk::Error;
using sdk::Result;
using sdk::Status;

Error Bad(const char* option, absl::string_view what) {
  return sdk::InvalidArgument(absl::StrCat("option ", option, ": ", what));
}

// A burst of less than a frame of 64 KiB would never let one through; it goes into debt then, so
// the least is a frame without segmentation.
constexpr uint64_t kLeastBurst = 1514;
// 16 GiB, also per second.
constexpr uint64_t kMost = uint64_t{1} << 34;

Status ReadRate(const sdk::Host& host, const char* rate_key, const char* burst_key, Rate* to) {
  const std::optional<std::string> rate = host.Option(rate_key);
  const std::optional<std::string> burst = host.Option(burst_key);
  if (rate) {
    const Result<uint64_t> value = ParseBytes(*rate);
    if (!value.ok()) return Bad(rate_key, value.error().text);
    to->rate = value.value();
    if (to->rate == 0) return Bad(rate_key, "must not be 0");
  }
  if (burst) {
    if (!rate) return Bad(burst_key, absl::StrCat("needs ", rate_key));
    const Result<uint64_t> value = ParseBytes(*burst);
    if (!value.ok()) return Bad(burst_key, value.error().text);
    if (value.value() < kLeastBurst) return Bad(burst_key, "must be at least 1514");
    to->burst = value.value();
  } else {
    // What passes in 50 ms, and at least two large frames.
    to->burst = std::max<uint64_t>(to->rate / 20, uint64_t{2} * sdk::kMaxFrame);
  }
  return {};
}

Status ReadTap(const sdk::Host& host, Options* options) {
  const std::optional<std::string> name = host.Option("tap");
  const std::optional<std::string> fds = host.Option("tap-fd");
  if (options->back_end != BackEnd::kTap) {
    if (name || fds) return Bad(name ? "tap" : "tap-fd", "only for backend=tap");
    return {};
  }
  if (name && fds) return Bad("tap-fd", "cannot be given together with tap");
  if (!name && !fds) return Bad("tap", "missing: the name of a TAP interface (or tap-fd)");
  if (name) {
    const bool plain = std::none_of(name->begin(), name->end(), [](char c) {
      return c == '/' || c == '%' || absl::ascii_isspace(static_cast<unsigned char>(c)) ||
             c == '\0';
    });
    if (name->empty() || name->size() >= IFNAMSIZ || !plain) {
      return Bad("tap", absl::StrCat("'", *name, "' is no name of an interface"));
    }
    options->tap = *name;
    return {};
  }
  for (const absl::string_view text : absl::StrSplit(*fds, ',')) {
    int fd = -1;
    if (!absl::SimpleAtoi(text, &fd) || fd < 0) {
      return Bad("tap-fd", absl::StrCat("'", text, "' is no number of a descriptor"));
    }
    options->tap_fds.push_back(fd);
  }
  if (options->tap_fds.size() > sdk::kMaxQueuePairs) return Bad("tap-fd", "too many");
  return {};
}

}  // namespace

Result<uint64_t> ParseBytes(const std::string& text) {
  uint64_t number = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number);
  unsigned shift = 0;
  bool good = error == std::errc() && last - end <= 1;
  if (good && end != last) {
    const char unit = absl::ascii_toupper(static_cast<unsigned char>(*end));
    shift = unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0;
    good = shift != 0;
  }
  if (!good || number > kMost >> shift) {
    return sdk::InvalidArgument(absl::StrCat("'", text, "' is no number of bytes like 64K or 10M"));
  }
  return number << shift;
}

Result<Options> ReadOptions(const sdk::Host& host) {
  Options options;
  const std::string back_end = host.Option("backend").value_or("tap");
  if (back_end == "null") {
    options.back_end = BackEnd::kNull;
  } else if (back_end == "loop") {
    options.back_end = BackEnd::kLoop;
  } else if (back_end != "tap") {
    return Bad("backend", absl::StrCat("'", back_end, "' is none of tap, null and loop"));
  }
  Status status = ReadTap(host, &options);
  if (status.ok()) status = ReadRate(host, "tx-rate", "tx-burst", &options.tx);
  if (status.ok()) status = ReadRate(host, "rx-rate", "rx-burst", &options.rx);
  if (!status.ok()) return status.error();
  return options;
}

}  // namespace virtbay::virtio_net
