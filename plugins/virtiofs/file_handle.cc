#include "plugins/virtiofs/file_handle.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace virtbay::virtiofs {

FileHandle* FileHandle::Of(int fd) {
  alignas(struct file_handle) char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
  auto* handle = reinterpret_cast<struct file_handle*>(space);
  handle->handle_bytes = MAX_HANDLE_SZ;
  int mount_id = 0;
  if (::name_to_handle_at(fd, "", handle, &mount_id, AT_EMPTY_PATH) != 0) return nullptr;
  const size_t bytes = sizeof(struct file_handle) + handle->handle_bytes;
  void* copy = std::malloc(bytes);
  if (copy == nullptr) return nullptr;
  std::memcpy(copy, handle, bytes);
  return static_cast<FileHandle*>(copy);
}

int FileHandle::type() const {
  return reinterpret_cast<const struct file_handle*>(this)->handle_type;
}

std::span<const std::byte> FileHandle::bytes() const {
  const auto* handle = reinterpret_cast<const struct file_handle*>(this);
  return {reinterpret_cast<const std::byte*>(handle->f_handle), handle->handle_bytes};
}

FileHandle* FileHandle::From(int type, std::span<const std::byte> bytes) {
  if (bytes.empty() || bytes.size() > MAX_HANDLE_SZ) return nullptr;
  void* const copy = std::malloc(sizeof(struct file_handle) + bytes.size());
  if (copy == nullptr) return nullptr;
  auto* handle = static_cast<struct file_handle*>(copy);
  handle->handle_type = type;
  handle->handle_bytes = static_cast<unsigned int>(bytes.size());
  std::memcpy(handle->f_handle, bytes.data(), bytes.size());
  return static_cast<FileHandle*>(copy);
}

void FileHandle::Free(FileHandle* handle) { std::free(handle); }

int FileHandle::Open(int mount_fd, int flags) {
  const int fd = ::open_by_handle_at(mount_fd, reinterpret_cast<struct file_handle*>(this), flags);
  return fd < 0 ? -errno : fd;
}

}  // namespace virtbay::virtiofs
