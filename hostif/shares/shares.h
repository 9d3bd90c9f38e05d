// The shares of an aggregate virtiofs device (option `aggregate`): added, removed and listed while
// it serves, through DeviceHandle::Control. Stateless functions; [any], each blocks for the time of
// the change it makes.
#ifndef VIRTBAY_HOSTIF_SHARES_SHARES_H_
#define VIRTBAY_HOSTIF_SHARES_SHARES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/export.h"
#include "virtbay/host.h"

namespace virtbay::shares {

struct ShareSpec {
  std::string name;  // of the directory entry that the guest sees; empty: one is made up
  std::string path;  // directory of the host
  std::map<std::string, std::string> options;  // docs/usage.md, "Owners, modes and names"
};

struct AddedShare {
  std::string name;
  bool existing = false;  // a share with this path and these options was there; it is the one
};

// [any] InvalidArgument (name, options, path that is no directory), NotFound and PermissionDenied
// (path), AlreadyExists (name), ResourceExhausted (max-shares, descriptors), FailedPrecondition
// (the device is no aggregate, or lacks an option), Unimplemented (no virtiofs device).
VIRTBAY_EXPORT absl::StatusOr<AddedShare> Add(const DeviceHandle& device, const ShareSpec& share);

// [any] The guest finds the name no more; what it has open goes on until it is closed. NotFound.
VIRTBAY_EXPORT absl::Status Remove(const DeviceHandle& device, absl::string_view name);

// [any] All shares in the order in which they were added.
VIRTBAY_EXPORT absl::StatusOr<std::vector<ShareSpec>> List(const DeviceHandle& device);

}  // namespace virtbay::shares

#endif  // VIRTBAY_HOSTIF_SHARES_SHARES_H_
