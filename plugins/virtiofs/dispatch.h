// From an opcode to its handler: the table, and the checks that every request passes first.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_DISPATCH_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_DISPATCH_H_

#include <cstddef>
#include <span>

#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/worker.h"
#include "virtbay/sdk/request.h"

namespace virtbay::virtiofs {

// [queue] Serves one request: answers it, or keeps it to answer it later.
void Dispatch(Fs& fs, Worker& worker, sdk::Request request);

// [any] Whether a request whose first bytes these are may be done again by a device that does not
// know how far another one has come with it: VIRTBAY_EXTENSION_REPEAT.
bool MayRepeat(std::span<const std::byte> in);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_DISPATCH_H_
