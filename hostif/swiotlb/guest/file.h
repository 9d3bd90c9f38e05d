// Reading the small files of sysfs, debugfs and the device tree, whose contents nothing vouches
// for: at most so many bytes, never a wait, never an exception. Stateless; part of virtbay-guest,
// which uses the C++ standard library only.
#ifndef VIRTBAY_HOSTIF_SWIOTLB_GUEST_FILE_H_
#define VIRTBAY_HOSTIF_SWIOTLB_GUEST_FILE_H_

#include <cstddef>
#include <string>

namespace virtbay::guest_tool {

struct FileText {
  std::string text;
  std::string why;       // empty: the file was read; else the reason, with the path
  bool missing = false;  // there is no such file

  bool ok() const { return why.empty(); }
};

// [any] The whole of a regular file of at most `limit` bytes.
FileText ReadFile(const std::string& path, size_t limit);

}  // namespace virtbay::guest_tool

#endif  // VIRTBAY_HOSTIF_SWIOTLB_GUEST_FILE_H_
