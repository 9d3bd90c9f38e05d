#include "virtbay/version.h"

namespace virtbay {

const char* Version() { return VIRTBAY_VERSION; }

}  // namespace virtbay
