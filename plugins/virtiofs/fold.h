// Names without regard to case (case=off): a name that is not there is looked for among all names
// of its directory.
// The folder is constant once made and belongs to its share; functions are [any].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_FOLD_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_FOLD_H_

#include <locale.h>

#include <array>
#include <memory>
#include <string_view>

namespace virtbay::virtiofs {

class Fs;

class CaseFolder {
 public:
  // Letters of Unicode where the host has the locale C.UTF-8, else those of ASCII.
  CaseFolder();
  ~CaseFolder();
  CaseFolder(const CaseFolder&) = delete;
  CaseFolder& operator=(const CaseFolder&) = delete;

  bool unicode() const { return locale_ != nullptr; }
  // Bytes that are no UTF-8 are equal to themselves only.
  bool Same(std::string_view a, std::string_view b) const;

  // The name in the directory behind dirfd that is the same as `name` (the first in byte order if
  // there are several), NUL-terminated: 0, ENOENT, or another errno.
  int Find(Fs& fs, int dirfd, std::string_view name, std::array<char, 256>* real) const;

 private:
  uint32_t Fold(uint32_t code) const;
  locale_t locale_ = nullptr;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_FOLD_H_
