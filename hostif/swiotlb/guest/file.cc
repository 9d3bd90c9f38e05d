#include "hostif/swiotlb/guest/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace virtbay::guest_tool {
namespace {

FileText Failed(const std::string& path, int error) {
  FileText file;
  file.missing = error == ENOENT || error == ENOTDIR;
  file.why = path + ": " + (file.missing ? "there is no such file" : std::strerror(error));
  return file;
}

}  // namespace

FileText ReadFile(const std::string& path, size_t limit) {
  // O_NONBLOCK: a FIFO in the place of the file must not hold up the boot of a guest.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return Failed(path, errno);
  FileText file;
  struct stat info = {};
  if (::fstat(fd, &info) != 0) {
    file = Failed(path, errno);
  } else if (!S_ISREG(info.st_mode)) {
    file.why = path + ": is not a regular file";
  } else {
    // The size of a sysfs file says nothing, so one byte more than allowed is asked for.
    file.text.resize(limit + 1);
    size_t filled = 0;
    while (filled < file.text.size()) {
      const ssize_t n = ::read(fd, file.text.data() + filled, file.text.size() - filled);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        file = Failed(path, errno);
        break;
      }
      if (n == 0) break;
      filled += static_cast<size_t>(n);
    }
    if (file.ok() && filled > limit) {
      file.why = path + ": is longer than " + std::to_string(limit) + " bytes";
    }
    file.text.resize(file.ok() ? filled : 0);
  }
  ::close(fd);
  return file;
}

}  // namespace virtbay::guest_tool
