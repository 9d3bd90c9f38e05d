// ElfFile: the dynamic part of an ELF64 shared library, read from the file without loading it.
// The file is hostile: every offset, size and count is checked against the file and against fixed
// limits, so that no file makes the reader crash, loop or take more than some 100 MiB.
// A value made on the control thread; nothing refers to the file descriptor afterwards.
#ifndef VIRTBAY_FRAMEWORK_PLUGIN_ELF_FILE_H_
#define VIRTBAY_FRAMEWORK_PLUGIN_ELF_FILE_H_

#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace virtbay {

class ElfFile {
 public:
  // A symbol that dlsym could find.
  struct Symbol {
    std::string name;
    uint64_t value = 0;
    uint64_t size = 0;
    uint8_t type = STT_NOTYPE;
    bool unique = false;  // STB_GNU_UNIQUE
  };

  // Reads the file behind `fd` (which stays the caller's). InvalidArgument says what is wrong with
  // it as the rest of a sentence that begins with the file's name. [control]
  static absl::StatusOr<ElfFile> Read(int fd);

  const std::vector<Symbol>& symbols() const { return symbols_; }
  const std::vector<std::string>& needed() const { return needed_; }
  const Symbol* Find(absl::string_view name) const;

  // Reads [address, +len) as the file has it, before relocation; false when that range is not
  // wholly in the file. `fd` is the file of Read. [control]
  bool ReadAt(int fd, uint64_t address, void* to, size_t len) const;

 private:
  // A PT_LOAD: the file has bytes for [address, +size).
  struct Segment {
    uint64_t address = 0;
    uint64_t offset = 0;
    uint64_t size = 0;
  };
  // What PT_DYNAMIC says.
  struct Dynamic {
    uint64_t symbols = 0;
    uint64_t strings = 0;
    uint64_t strings_size = 0;
    uint64_t sysv_hash = 0;
    uint64_t gnu_hash = 0;
    std::vector<uint64_t> needed;  // offsets in the strings
  };

  absl::StatusOr<Dynamic> ReadDynamic(int fd, const Elf64_Phdr& header) const;
  // Nothing in the dynamic section says how many symbols there are; the hash tables do.
  absl::StatusOr<size_t> CountSymbols(int fd, const Dynamic& dynamic) const;
  absl::StatusOr<size_t> CountByGnuHash(int fd, uint64_t address) const;
  absl::Status ReadSymbols(int fd, const Dynamic& dynamic);
  // Bytes that the file has from `address` to the end of its segment.
  uint64_t Available(uint64_t address) const;
  // Fills `to` with `count` items from `address`; false, and no memory taken, when they are not
  // wholly in the file.
  template <typename Container>
  bool ReadItems(int fd, uint64_t address, uint64_t count, Container* to) const;

  std::vector<Segment> segments_;
  std::vector<Symbol> symbols_;
  std::vector<std::string> needed_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_PLUGIN_ELF_FILE_H_
