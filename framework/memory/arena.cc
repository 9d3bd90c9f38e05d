#include "framework/memory/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U  // Linux 6.3
#endif

namespace virtbay {
namespace {

constexpr uint64_t kArenaMax = uint64_t{4} << 30;
constexpr size_t kMemfdNameMax = 249;

uint64_t GuardSize() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

UniqueFd CreateMemfd(const std::string& name) {
  UniqueFd fd(memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL));
  if (!fd.valid() && errno == EINVAL) {
    fd.reset(memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  }
  return fd;
}

}  // namespace

absl::StatusOr<Arena> Arena::Create(absl::string_view name, uint64_t size) {
  if (size == 0 || size > kArenaMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("arena '", name, "': size ", size, " is not in 1..", kArenaMax));
  }
  const uint64_t rounded = (size + kMappingMax - 1) / kMappingMax * kMappingMax;
  std::string label = absl::StrCat("virtbay-arena:", name);
  label.resize(std::min(label.size(), kMemfdNameMax));

  Arena arena;
  // The mapping keeps the memory: thousands of devices need not hold a descriptor each.
  const UniqueFd fd = CreateMemfd(label);
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("arena '", name, "': memfd"));
  if (ftruncate(fd.get(), static_cast<off_t>(rounded)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("arena '", name, "': ftruncate"));
  }
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return ErrnoStatus(errno, absl::StrCat("arena '", name, "': seal"));
  }

  // One reservation with the guards in it, then the memfd over its middle: nothing else can come to
  // lie beside the arena.
  const uint64_t guard = GuardSize();
  void* const base =
      mmap(nullptr, rounded + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("arena '", name, "': mmap"));
  std::byte* const data = static_cast<std::byte*>(base) + guard;
  arena.data_ = data;
  arena.size_ = rounded;
  if (mmap(data, rounded, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd.get(), 0) ==
      MAP_FAILED) {
    return ErrnoStatus(errno, absl::StrCat("arena '", name, "': mmap"));
  }
  return arena;
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  if (this != &other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  return *this;
}

Arena::~Arena() {
  if (data_ == nullptr) return;
  const uint64_t guard = GuardSize();
  munmap(data_ - guard, size_ + 2 * guard);
}

}  // namespace virtbay
