// The directory that the file system workloads work on, and the contents of its files, which every
// subject can check. Functions on plain paths; any thread.
#ifndef VIRTBAY_TESTS_BENCH_FS_DATA_H_
#define VIRTBAY_TESTS_BENCH_FS_DATA_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "absl/status/status.h"

namespace virtbay::bench {

inline constexpr uint32_t kFsFiles = 10'000;
inline constexpr uint64_t kFsReadSize = uint64_t{256} << 20;  // of the file "data"
inline constexpr uint64_t kFsWriteSize = uint64_t{64} << 20;  // of the file "out"
inline constexpr uint32_t kFsBlock = 4096;
inline constexpr uint32_t kFsChunk = 1u << 20;

// Name and size of the index-th of the small files in "files".
inline std::array<char, 16> FsFileName(uint32_t index) {
  std::array<char, 16> name;
  std::snprintf(name.data(), name.size(), "f%05u", index);
  return name;
}
inline uint32_t FsFileSize(uint32_t index) { return index * 37 % 4000; }

// The 8 bytes at `offset` (a multiple of 8) of a file filled with `salt`.
inline uint64_t FsWord(uint64_t offset, uint64_t salt) {
  uint64_t x = offset + salt * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
  return x ^ (x >> 29);
}
void FsFill(std::span<std::byte> data, uint64_t offset, uint64_t salt);
// Puts right the first and last words of each 4 KiB block only.
void FsStamp(std::span<std::byte> data, uint64_t offset, uint64_t salt);
// Compares the first and last words of the data.
bool FsCheckEnds(std::span<const std::byte> data, uint64_t offset, uint64_t salt);
// Compares every word.
bool FsCheckAll(std::span<const std::byte> data, uint64_t offset, uint64_t salt);

// Makes files/, data, out and scratch/ in `dir` unless they are there, and reads `data` into the
// page cache.
absl::Status PrepareFsData(const std::string& dir);
// Empties scratch/ and writes what is dirty in `out` to disk, so that no run pays for the last.
absl::Status SettleFsData(const std::string& dir);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_FS_DATA_H_
