// SaveState and RestoreState: a virtiofs device's session as bytes and descriptors, and a device
// that goes on with it. The form is in format.h.
// Stateless functions, [control], while no request is at work.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_STATE_STATE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_STATE_STATE_H_

#include "plugins/virtiofs/fs.h"
#include "virtbay/sdk/result.h"
#include "virtbay/sdk/state.h"

namespace virtbay::virtiofs {

// Writes what another device needs. Nothing is consumed, and no system call is made for an inode.
sdk::Status SaveState(Fs& fs, sdk::StateWriter* out);

// Goes on with a state; `fs` has been initialised with the option host.restores, and nothing else.
// INVALID_ARGUMENT: the state is not well formed, or its descriptors are not what it says.
// FAILED_PRECONDITION: it is none for a device with these options. RESOURCE_EXHAUSTED: it is more
// than the device can have. On an error `fs` is of no use any more, and closing it does no harm to
// the device that the state comes from.
sdk::Status RestoreState(Fs& fs, sdk::StateReader* in);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_STATE_STATE_H_
