#include "plugins/virtiofs/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "plugins/virtiofs/option_values.h"

namespace virtbay::virtiofs {
namespace {

using sdk::Status;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint32_t kDefaultQueues = 4;  // at most

// Seconds with decimals, to nanoseconds; at most ten years, so that no guest overflows.
Status ParseSeconds(std::string_view key, std::string_view value, uint64_t* out) {
  double seconds = 0;
  const auto [end, error] =
      std::from_chars(value.data(), value.data() + value.size(), seconds, std::chars_format::fixed);
  if (error != std::errc() || end != value.data() + value.size() || !std::isfinite(seconds) ||
      seconds < 0 || seconds > 315360000.0) {
    return BadValue(key, value, "a time in seconds from 0 to 315360000");
  }
  *out = static_cast<uint64_t>(std::llround(seconds * static_cast<double>(kSecond)));
  return {};
}

Status ParseCache(std::string_view key, std::string_view value, CachePolicy* out) {
  if (value == "auto") return *out = CachePolicy::kAuto, Status();
  if (value == "always") return *out = CachePolicy::kAlways, Status();
  if (value == "never" || value == "none") return *out = CachePolicy::kNever, Status();
  if (value == "metadata") return *out = CachePolicy::kMetadata, Status();
  return BadValue(key, value, "one of auto, always, never, metadata");
}

struct Timeouts {
  std::optional<uint64_t> attr, entry, negative;
};

Status ParseOne(std::string_view key, const std::string& value, Options* o, Timeouts* t) {
  if (ShareOptions::Knows(key)) return o->share.Set(key, value);
  auto seconds = [&](std::optional<uint64_t>* out) {
    out->emplace(0);
    return ParseSeconds(key, value, &**out);
  };
  if (key == "shared-dir") return o->shared_dir = value, Status();
  if (key == "tag") {
    if (value.empty() || value.size() > 36) return BadValue(key, value, "1 to 36 bytes long");
    return o->tag = value, Status();
  }
  if (key == "cache") return ParseCache(key, value, &o->cache);
  if (key == "attr-timeout") return seconds(&t->attr);
  if (key == "entry-timeout") return seconds(&t->entry);
  if (key == "negative-timeout") return seconds(&t->negative);
  if (key == "writeback") return ParseBool(key, value, &o->writeback);
  if (key == "posix-acl") return ParseBool(key, value, &o->posix_acl);
  if (key == "allow-direct-io") return ParseBool(key, value, &o->allow_direct_io);
  if (key == "readdirplus") return ParseBool(key, value, &o->readdirplus);
  if (key == "no-readdirplus") {
    bool off = false;
    Status status = ParseBool(key, value, &off);
    o->readdirplus = !off;
    return status;
  }
  if (key == "announce-submounts") return ParseBool(key, value, &o->announce_submounts);
  if (key == "killpriv-v2") return ParseBool(key, value, &o->killpriv_v2);
  if (key == "aggregate") return ParseBool(key, value, &o->aggregate);
  if (key == "max-shares") return ParseNumber(key, value, 1, 65536, &o->max_shares);
  if (key == "vcpus") return ParseNumber(key, value, 1, 65536, &o->vcpus);
  if (key == "request-queues") return ParseNumber(key, value, 1, 8, &o->request_queues);
  if (key == "max-write") return ParseNumber(key, value, 4096, 1u << 20, &o->max_write);
  if (key == "max-open-inodes") {
    return ParseNumber(key, value, 8, 1u << 24, &o->max_open_inodes);
  }
  if (key == "max-open-files") return ParseNumber(key, value, 16, 1u << 24, &o->max_open_files);
  if (key == "max-inodes") return ParseNumber(key, value, 64, 1u << 28, &o->max_inodes);
  if (key == "max-lock-waiters") {
    return ParseNumber(key, value, 0, 65536, &o->max_lock_waiters.emplace());
  }
  return sdk::InvalidArgument("option " + std::string(key) + ": there is no such option");
}

}  // namespace

Status Options::CheckShare(const ShareOptions& given) const {
  // The entries of an access control list name users and groups of the host.
  if (posix_acl && (given.owns_files() || given.translates() || given.mode.has_value())) {
    return sdk::InvalidArgument(
        "option posix-acl: cannot be given together with uid, gid, mode, default_uid, default_gid, "
        "metadata, translate-uid or translate-gid");
  }
  return {};
}

sdk::Result<Options> Options::Parse(const std::vector<KeyValue>& given) {
  Options o;
  Timeouts t;
  for (const auto& [key, value] : given) {
    if (std::string_view(key).substr(0, 5) == "host.") continue;
    Status status = ParseOne(key, value, &o, &t);
    if (!status.ok()) return status.error();
  }
  if (o.aggregate && !o.shared_dir.empty()) {
    return sdk::InvalidArgument(
        "option shared-dir: cannot be given together with aggregate, whose shares are added");
  }
  if (!o.aggregate && o.shared_dir.empty()) {
    return sdk::InvalidArgument("option shared-dir: is missing");
  }
  o.readonly = o.share.readonly;
  o.xattr = o.share.xattr.value_or(false) || o.posix_acl;
  if (Status status = o.CheckShare(o.share); !status.ok()) return status.error();
  o.max_write &= ~4095u;
  // A device does not see how many CPUs its guest has, and each queue costs a thread and a ring.
  // An aggregate does the work of many.
  if (o.vcpus == 0) o.vcpus = o.aggregate ? kDefaultQueues : 1;
  if (o.request_queues == 0) o.request_queues = std::min(o.vcpus, kDefaultQueues);

  uint64_t policy = kSecond;
  if (o.cache == CachePolicy::kNever) policy = 0;
  if (o.cache == CachePolicy::kAlways || o.cache == CachePolicy::kMetadata) {
    policy = 86400 * kSecond;
  }
  o.attr_timeout_ns = t.attr.value_or(policy);
  o.entry_timeout_ns = t.entry.value_or(policy);
  // A name that is not there may appear on the host at any moment under every policy, so that its
  // absence is only remembered when asked for.
  o.negative_timeout_ns = t.negative.value_or(0);
  return o;
}

}  // namespace virtbay::virtiofs
