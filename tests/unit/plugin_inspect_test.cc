// InspectPluginFile: what it reads, and files made to break the reader.
#include <elf.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>

#include "framework/base/unique_fd.h"
#include "framework/plugin/plugin.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::virtbay::testing::ReadFile;
using ::virtbay::testing::StatusIs;
using ::virtbay::testing::TempDir;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(Inspect, ReadsTheTemplateDevice) {
  ASSERT_OK_AND_ASSIGN(const PluginFileInfo info, InspectPluginFile(VIRTBAY_RNG_PLUGIN));
  EXPECT_EQ(info.path, VIRTBAY_RNG_PLUGIN);
  EXPECT_EQ(info.abi_major, VIRTBAY_ABI_MAJOR);
  EXPECT_EQ(info.abi_minor, VIRTBAY_ABI_MINOR);
  EXPECT_EQ(info.name, "virtio-rng");
  EXPECT_EQ(info.device_types, "virtio-rng:4");
  EXPECT_FALSE(info.version.empty());
  EXPECT_FALSE(info.build.empty());
  EXPECT_THAT(info.exports, ElementsAre("virtbay_plugin_entry"));
  EXPECT_THAT(info.unique, IsEmpty());
  EXPECT_THAT(info.needed, Contains(HasSubstr("libc.so")));
}

#if defined(__GNUC__) && !defined(__clang__)
TEST(Inspect, NamesUniqueSymbols) {
  ASSERT_OK_AND_ASSIGN(const PluginFileInfo info,
                       InspectPluginFile(VIRTBAY_BAD_PLUGIN_DIR "/unique_symbols.so"));
  EXPECT_THAT(info.unique, Contains(HasSubstr("Table")));
  EXPECT_THAT(info.exports, Contains("virtbay_plugin_entry"));
}
#endif

TEST(Inspect, NamesTheFile) {
  EXPECT_THAT(InspectPluginFile("/nowhere/p.so"),
              StatusIs(absl::StatusCode::kNotFound, "plugin /nowhere/p.so: No such file"));
  EXPECT_THAT(InspectPluginFile("/dev/null"),
              StatusIs(kInvalid, "plugin /dev/null: not a regular"));
  EXPECT_THAT(InspectPluginFile("/etc/passwd"),
              StatusIs(kInvalid, "plugin /etc/passwd: not an ELF shared library"));
}

class Corrupt : public ::testing::Test {
 protected:
  Corrupt() : original_(ReadFile(VIRTBAY_RNG_PLUGIN)), file_(dir_.Write("p.so", original_)) {
    fd_.reset(open(file_.c_str(), O_RDWR | O_CLOEXEC));
  }
  void Put(size_t offset, const void* data, size_t len) {
    ASSERT_EQ(pwrite(fd_.get(), data, len, static_cast<off_t>(offset)), static_cast<ssize_t>(len));
  }
  template <typename T>
  T Get(size_t offset) const {
    T value;
    std::memcpy(&value, original_.data() + offset, sizeof(value));
    return value;
  }
  // Inspects the changed file; whatever comes out must be an answer. Returns whether it is OK.
  bool Answers() {
    const auto info = InspectPluginFile(file_);
    if (info.ok()) return true;
    EXPECT_EQ(info.status().code(), kInvalid) << info.status();
    EXPECT_THAT(info.status().message(), HasSubstr("p.so: "));
    return false;
  }
  void Restore() { Put(0, original_.data(), original_.size()); }

  TempDir dir_;
  std::string original_;
  std::filesystem::path file_;
  UniqueFd fd_;
};

TEST_F(Corrupt, TruncatedAnywhere) {
  for (size_t size = original_.size(); size-- > 0;) {
    if (size > 1500 && size % 61 != 0) continue;
    ASSERT_EQ(ftruncate(fd_.get(), static_cast<off_t>(size)), 0);
    // Section headers at the end are not needed: only a cut into the segments is an error.
    if (size < 1024) {
      EXPECT_FALSE(Answers()) << size;
    }
    Answers();
  }
}

TEST_F(Corrupt, EveryByteOfTheHeaders) {
  const Elf64_Ehdr header = Get<Elf64_Ehdr>(0);
  const size_t end = header.e_phoff + size_t{header.e_phnum} * sizeof(Elf64_Phdr);
  ASSERT_LT(end, original_.size());
  for (size_t at = 0; at < end; ++at) {
    for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      const char byte = static_cast<char>(value);
      Put(at, &byte, 1);
      Answers();
    }
    Put(at, original_.data() + at, 1);
  }
  EXPECT_TRUE(Answers());
}

// The words of what the program headers lead to, set to the values that hurt.
TEST_F(Corrupt, WordsOfTheDynamicPart) {
  const Elf64_Ehdr header = Get<Elf64_Ehdr>(0);
  std::vector<std::pair<size_t, size_t>> ranges;
  uint64_t first_segment_end = 0;
  for (size_t i = 0; i < header.e_phnum; ++i) {
    const auto h = Get<Elf64_Phdr>(header.e_phoff + i * sizeof(Elf64_Phdr));
    if (h.p_type == PT_DYNAMIC) ranges.emplace_back(h.p_offset, h.p_filesz);
    if (h.p_type == PT_LOAD && h.p_offset == 0) first_segment_end = h.p_filesz;
  }
  ASSERT_EQ(ranges.size(), 1u);
  // The first segment: notes, hash table, symbols, strings, relocations.
  ranges.emplace_back(sizeof(Elf64_Ehdr), first_segment_end - sizeof(Elf64_Ehdr));
  for (const auto& [offset, size] : ranges) {
    // A sanitizer's or debug build has a larger table of the same kind: a part of it will do there.
    const size_t step = 4 * (1 + size / 4096);
    for (size_t at = offset; at + 4 <= offset + size; at += step) {
      for (const uint32_t value : {0u, 1u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
        Put(at, &value, sizeof(value));
        Answers();
      }
      Put(at, original_.data() + at, 4);
    }
  }
  EXPECT_TRUE(Answers());
}

TEST_F(Corrupt, AtRandom) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    const size_t changes = 1 + random() % 16;
    for (size_t i = 0; i < changes; ++i) {
      const uint64_t value = random() % 2 == 0 ? random() : ~uint64_t{random() % 64};
      const size_t len = size_t{1} << (random() % 4);
      Put(random() % (original_.size() - 8), &value, len);
    }
    Answers();
    Restore();
  }
  EXPECT_TRUE(Answers());
}

TEST_F(Corrupt, OtherKindsOfElf) {
  Elf64_Ehdr header = Get<Elf64_Ehdr>(0);
  header.e_ident[EI_CLASS] = ELFCLASS32;
  Put(0, &header, sizeof(header));
  EXPECT_THAT(InspectPluginFile(file_), StatusIs(kInvalid, "not a 64-bit file"));
  header = Get<Elf64_Ehdr>(0);
  header.e_machine = EM_S390;
  Put(0, &header, sizeof(header));
  EXPECT_THAT(InspectPluginFile(file_), StatusIs(kInvalid, "for another machine"));
  header = Get<Elf64_Ehdr>(0);
  header.e_type = ET_REL;
  Put(0, &header, sizeof(header));
  EXPECT_THAT(InspectPluginFile(file_),
              StatusIs(kInvalid, "not an ELF shared library (ELF type 1)"));
}

}  // namespace
}  // namespace virtbay
