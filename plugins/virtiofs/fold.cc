#include "plugins/virtiofs/fold.h"

#include <fcntl.h>
#include <wctype.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>

#include "plugins/virtiofs/dir.h"
#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint32_t kNoCharacter = 0x110000;  // plus the byte

// Takes one character of UTF-8 off the text.
uint32_t Next(std::string_view* text) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>((*text)[i]); };
  const uint8_t head = byte(0);
  size_t length = 1;
  uint32_t code = head;
  if (head >= 0x80) {
    length = head >= 0xf0 ? 4 : head >= 0xe0 ? 3 : 2;
    code = head & (0xffu >> (length + 1));
    bool good = head >= 0xc2 && head <= 0xf4 && text->size() >= length;
    for (size_t i = 1; good && i < length; ++i) {
      good = (byte(i) & 0xc0) == 0x80;
      code = (code << 6) | (byte(i) & 0x3fu);
    }
    static constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (!good || code < kLeast[length] || code > 0x10ffff) {
      length = 1;
      code = kNoCharacter + head;
    }
  }
  text->remove_prefix(length);
  return code;
}

}  // namespace

CaseFolder::CaseFolder() : locale_(::newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr)) {}

CaseFolder::~CaseFolder() {
  if (locale_ != nullptr) ::freelocale(locale_);
}

uint32_t CaseFolder::Fold(uint32_t code) const {
  if (code < 0x80) return code >= 'A' && code <= 'Z' ? code + ('a' - 'A') : code;
  if (locale_ == nullptr || code >= kNoCharacter) return code;
  // Up and down again: some letters have two lower forms.
  return static_cast<uint32_t>(
      ::towlower_l(::towupper_l(static_cast<wint_t>(code), locale_), locale_));
}

bool CaseFolder::Same(std::string_view a, std::string_view b) const {
  while (!a.empty() && !b.empty()) {
    if (Fold(Next(&a)) != Fold(Next(&b))) return false;
  }
  return a.empty() && b.empty();
}

int CaseFolder::Find(Fs& fs, int dirfd, std::string_view name, std::array<char, 256>* real) const {
  const std::unique_ptr<DirStream> stream(new (std::nothrow) DirStream);
  if (stream == nullptr) return ENOMEM;
  const int fd = fs.OpenCounted(FdKind::kShort,
                                [&] { return OpenBeneath(dirfd, ".", O_RDONLY | O_DIRECTORY); });
  if (fd < 0) return -fd;
  std::string_view best;
  DirEntry entry;
  int state = 0;
  while ((state = stream->Peek(fd, &entry)) == 1) {
    if (entry.name.size() < real->size() && Same(entry.name, name) &&
        (best.empty() || entry.name < best)) {
      std::memcpy(real->data(), entry.name.data(), entry.name.size());
      (*real)[entry.name.size()] = '\0';
      best = {real->data(), entry.name.size()};
    }
    stream->Skip(entry);
  }
  fs.budget.Close(fd, false);
  if (state < 0) return -state;
  return best.empty() ? ENOENT : 0;
}

}  // namespace virtbay::virtiofs
