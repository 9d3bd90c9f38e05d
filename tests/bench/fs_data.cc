#include "tests/bench/fs_data.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

#include "framework/base/status.h"
#include "framework/base/unique_fd.h"

namespace virtbay::bench {
namespace {

uint64_t LoadWord(const std::byte* at) {
  uint64_t word = 0;
  std::memcpy(&word, at, sizeof(word));
  return word;
}

void StoreWord(std::byte* at, uint64_t word) { std::memcpy(at, &word, sizeof(word)); }

absl::Status MakeFile(const std::string& path, uint64_t size) {
  struct stat st {};
  if (::stat(path.c_str(), &st) == 0 && static_cast<uint64_t>(st.st_size) == size) {
    return absl::OkStatus();
  }
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd) return ErrnoStatus(errno, "creating " + path);
  std::vector<std::byte> chunk(kFsChunk);
  for (uint64_t at = 0; at < size; at += chunk.size()) {
    FsFill(chunk, at, 0);
    if (::write(fd.get(), chunk.data(), chunk.size()) != static_cast<ssize_t>(chunk.size())) {
      return ErrnoStatus(errno, "filling " + path);
    }
  }
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, "syncing " + path);
  return absl::OkStatus();
}

}  // namespace

void FsFill(std::span<std::byte> data, uint64_t offset, uint64_t salt) {
  for (size_t i = 0; i + 8 <= data.size(); i += 8) StoreWord(&data[i], FsWord(offset + i, salt));
}

void FsStamp(std::span<std::byte> data, uint64_t offset, uint64_t salt) {
  for (size_t i = 0; i + kFsBlock <= data.size(); i += kFsBlock) {
    StoreWord(&data[i], FsWord(offset + i, salt));
    const size_t last = i + kFsBlock - 8;
    StoreWord(&data[last], FsWord(offset + last, salt));
  }
}

bool FsCheckEnds(std::span<const std::byte> data, uint64_t offset, uint64_t salt) {
  const size_t last = data.size() - 8;
  return LoadWord(data.data()) == FsWord(offset, salt) &&
         LoadWord(&data[last]) == FsWord(offset + last, salt);
}

bool FsCheckAll(std::span<const std::byte> data, uint64_t offset, uint64_t salt) {
  for (size_t i = 0; i + 8 <= data.size(); i += 8) {
    if (LoadWord(&data[i]) != FsWord(offset + i, salt)) return false;
  }
  return true;
}

absl::Status PrepareFsData(const std::string& dir) {
  const std::filesystem::path root(dir);
  std::error_code error;
  std::filesystem::create_directories(root / "files", error);
  std::filesystem::create_directories(root / "scratch", error);
  if (error) return ErrnoStatus(error.value(), "making " + dir);
  for (uint32_t i = 0; i < kFsFiles; ++i) {
    const std::filesystem::path path = root / "files" / FsFileName(i).data();
    if (std::filesystem::file_size(path, error) == FsFileSize(i) && !error) continue;
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << std::string(FsFileSize(i), 'x');
    if (!file.flush()) return absl::InternalError("cannot write " + path.native());
  }
  VIRTBAY_RETURN_IF_ERROR(MakeFile(root / "data", kFsReadSize));
  VIRTBAY_RETURN_IF_ERROR(MakeFile(root / "out", kFsWriteSize));
  const UniqueFd data(::open((root / "data").c_str(), O_RDONLY | O_CLOEXEC));
  if (!data) return ErrnoStatus(errno, "opening data");
  std::vector<std::byte> chunk(kFsChunk);
  for (uint64_t at = 0; at < kFsReadSize; at += chunk.size()) {
    if (::pread(data.get(), chunk.data(), chunk.size(), static_cast<off_t>(at)) !=
        static_cast<ssize_t>(chunk.size())) {
      return ErrnoStatus(errno, "reading data");
    }
    if (!FsCheckAll(chunk, at, 0)) {
      return absl::DataLossError((root / "data").native() + " does not hold what was written");
    }
  }
  return absl::OkStatus();
}

absl::Status SettleFsData(const std::string& dir) {
  const std::filesystem::path root(dir);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root / "scratch", error)) {
    std::filesystem::remove_all(entry, error);
  }
  const UniqueFd out(::open((root / "out").c_str(), O_RDWR | O_CLOEXEC));
  if (!out) return ErrnoStatus(errno, "opening out");
  if (::fdatasync(out.get()) != 0) return ErrnoStatus(errno, "syncing out");
  return absl::OkStatus();
}

}  // namespace virtbay::bench
