// Goes on with the session that a killed process has left in a Store.
// Free function; [control].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_KEEP_REVIVE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_KEEP_REVIVE_H_

#include "plugins/virtiofs/fs.h"

namespace virtbay::virtiofs::keep {

// The root that a store is of.
Root RootOf(const Share& share);

// Fills the tables of `fs`, which are new, from fs.keep if there is a session of the same directory
// in it; else makes the store empty. What cannot be found any more is left out, and said.
void Revive(Fs& fs);

}  // namespace virtbay::virtiofs::keep

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_KEEP_REVIVE_H_
