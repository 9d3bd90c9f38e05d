// What the host itself does about a device's options: refuses values of another type than the
// plugin declares, and marks errors that are about one option with its name.
// Stateless; [control].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_OPTION_CHECK_H_
#define VIRTBAY_FRAMEWORK_DEVICE_OPTION_CHECK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "framework/plugin/plugin.h"
#include "virtbay/host.h"

namespace virtbay {

// InvalidArgument "option NAME: must be ..." for an option of spec.option_kinds that the plugin
// declares otherwise. Options that it does not declare are its own to judge.
absl::Status CheckOptionKinds(const Plugin& plugin, uint32_t type, const DeviceSpec& spec);

// The same error with kOptionPayload when it is the plugin's "option NAME: ..." (see abi.h).
absl::Status MarkOption(absl::Status status);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_OPTION_CHECK_H_
