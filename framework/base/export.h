// VIRTBAY_EXPORT: what the shared library libvirtbay shows an embedder; everything else is hidden.
// A macro; no thread.
#ifndef VIRTBAY_FRAMEWORK_BASE_EXPORT_H_
#define VIRTBAY_FRAMEWORK_BASE_EXPORT_H_

#define VIRTBAY_EXPORT __attribute__((visibility("default")))

#endif  // VIRTBAY_FRAMEWORK_BASE_EXPORT_H_
