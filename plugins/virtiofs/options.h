// Options of one virtiofs device, read once from the host's configuration service.
// A value owned by the device; constant after Init.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_OPTIONS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_OPTIONS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/virtiofs/share_options.h"
#include "virtbay/sdk/plugin.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

enum class CachePolicy : uint8_t { kAuto, kAlways, kNever, kMetadata };

// What there is, for hosts whose sources have types; Parse takes text.
inline constexpr std::array kOptionList = {
    sdk::MakeOption("shared-dir", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("tag", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("cache", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("attr-timeout", VIRTBAY_OPTION_NUMBER),
    sdk::MakeOption("entry-timeout", VIRTBAY_OPTION_NUMBER),
    sdk::MakeOption("negative-timeout", VIRTBAY_OPTION_NUMBER),
    sdk::MakeOption("readonly", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("writeback", VIRTBAY_OPTION_BOOLEAN),
    // `xattr` is a boolean or NAME=VALUE, so that it is left out.
    sdk::MakeOption("posix-acl", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("allow-direct-io", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("readdirplus", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("no-readdirplus", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("announce-submounts", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("killpriv-v2", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("metadata", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("case", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("uid", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("gid", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("default_uid", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("default_gid", VIRTBAY_OPTION_INTEGER),
    // In octal, which a number is not any more: 022 and 0o22 have lost their digits.
    sdk::MakeOption("mode", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("umask", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("fmask", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("dmask", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("symlinkroot", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("translate-uid", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("translate-gid", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("aggregate", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("max-shares", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("vcpus", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("request-queues", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-write", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-open-inodes", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-open-files", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-inodes", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-lock-waiters", VIRTBAY_OPTION_INTEGER),
};

struct Options {
  std::string shared_dir;
  std::string tag = "virtiofs";
  CachePolicy cache = CachePolicy::kAuto;
  uint64_t attr_timeout_ns = 0;
  uint64_t entry_timeout_ns = 0;
  uint64_t negative_timeout_ns = 0;
  ShareOptions share;
  bool readonly = false;  // the share's
  bool writeback = false;
  bool xattr = false;  // the guest may ask for extended attributes
  bool posix_acl = false;
  bool allow_direct_io = false;
  bool readdirplus = true;
  bool announce_submounts = true;
  bool killpriv_v2 = false;
  bool aggregate = false;          // many shares, which come at run time, and no directory
  uint32_t max_shares = 4096;      // of an aggregate
  uint32_t vcpus = 0;              // of the guest; 0: not known
  uint32_t request_queues = 0;     // until parsed: 0 is the default, see Parse
  uint32_t max_write = 1u << 20;   // bytes; at most what a guest that bounces can map
  uint32_t max_open_inodes = 0;    // O_PATH descriptors kept open; 0: derived from RLIMIT_NOFILE
  uint32_t max_open_files = 0;     // all descriptors of the device; 0: derived
  uint32_t max_inodes = 8u << 20;  // inodes that the guest may know
  // Blocked SETLKW requests. They keep their places in the rings, where the unlock that ends them
  // needs one as well: a quarter of the smallest usual ring.
  std::optional<uint32_t> max_lock_waiters;

  using KeyValue = std::pair<std::string, std::string>;
  // [control] An Error names the key and the value that is wrong, or the key that is unknown.
  static sdk::Result<Options> Parse(const std::vector<KeyValue>& given);
  // [control] Whether a share can have these options on this device.
  sdk::Status CheckShare(const ShareOptions& given) const;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_OPTIONS_H_
