// ShareOptions: what is said of one share alone: read-only, who owns its files, how names, links
// and attributes are shown. The names of the keys are those of WSL's DrvFs where it has them.
// A value, constant once the share is open.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_SHARE_OPTIONS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_SHARE_OPTIONS_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugins/virtiofs/id_map.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

struct ShareOptions {
  bool readonly = false;
  // Owner, mode and device number are kept in an attribute of the host's file (see Metadata).
  bool metadata = false;
  // case=off: a name that is not there matches one that differs in case only.
  bool fold_case = false;
  // Of all files, whatever the host or their metadata say.
  std::optional<uint32_t> uid, gid, mode;
  // Of files without metadata.
  std::optional<uint32_t> default_uid, default_gid;
  uint32_t umask = 0, fmask = 0, dmask = 0;  // bits that files without metadata do not show
  // Where the guest finds the host's tree: absolute targets of links are shown below it.
  std::string symlink_root;  // without a slash at the end; empty: they are shown as they are
  // Extended attributes: not given, or whether the host's are passed through.
  std::optional<bool> xattr;
  std::string xattr_name, xattr_value;  // one that every file has; no name: none
  IdMap uid_map, gid_map;

  using KeyValue = std::pair<std::string, std::string>;

  // Whether the key is one of these options.
  static bool Knows(std::string_view key);
  // Sets one of them. An Error names the key and what is wrong.
  sdk::Status Set(std::string_view key, const std::string& value);
  // The options as they would have to be set, without those that are at their defaults.
  std::vector<KeyValue> List() const;

  // Files are shown as they are on the host, inode numbers apart.
  bool plain() const;
  // What the guest makes belongs to this process on the host, and to somebody else for the guest.
  bool owns_files() const {
    return metadata || uid.has_value() || gid.has_value() || default_uid.has_value() ||
           default_gid.has_value();
  }
  bool translates() const { return !uid_map.empty() || !gid_map.empty(); }
  uint32_t mask_of(mode_t type_and_mode) const;

  bool operator==(const ShareOptions&) const = default;

 private:
  // As they were given, for List.
  std::string uid_map_text_, gid_map_text_;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_SHARE_OPTIONS_H_
