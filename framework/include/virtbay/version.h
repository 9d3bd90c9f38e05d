// Version: of the library that runs, which a program that was built with another one may ask.
// Stateless; [any].
#ifndef VIRTBAY_VERSION_H_
#define VIRTBAY_VERSION_H_

#include "framework/base/export.h"

namespace virtbay {

// "MAJOR.MINOR.PATCH". [any]
VIRTBAY_EXPORT const char* Version();

}  // namespace virtbay

#endif  // VIRTBAY_VERSION_H_
