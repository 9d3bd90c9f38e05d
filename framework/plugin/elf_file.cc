#include "framework/plugin/elf_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay {
namespace {

static_assert(sizeof(void*) == 8, "plugins are ELF64");

// Far above what a library has; they bound the memory and time that a made-up file can cost.
constexpr size_t kMaxProgramHeaders = 512;
constexpr size_t kMaxDynamicEntries = 4096;
constexpr size_t kMaxSymbols = size_t{1} << 20;
constexpr size_t kMaxStrings = size_t{32} << 20;
constexpr size_t kMaxNameBytes = size_t{32} << 20;  // of all names together
constexpr size_t kMaxHashWords = size_t{1} << 20;

#if defined(__x86_64__)
constexpr uint16_t kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr uint16_t kMachine = EM_AARCH64;
#elif defined(__riscv)
constexpr uint16_t kMachine = EM_RISCV;
#else
#error "name the ELF machine of this architecture here"
#endif

absl::Status Bad(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("not a usable ELF shared library: ", what));
}

// Exactly `len` bytes at `offset`; false at the end of the file or on an I/O error.
bool ReadFully(int fd, uint64_t offset, void* to, size_t len) {
  std::byte* next = static_cast<std::byte*>(to);
  while (len > 0) {
    if (offset > static_cast<uint64_t>(INT64_MAX)) return false;
    const ssize_t n = pread(fd, next, len, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    next += n;
    len -= static_cast<size_t>(n);
    offset += static_cast<uint64_t>(n);
  }
  return true;
}

absl::Status CheckHeader(const Elf64_Ehdr& header) {
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
    return absl::InvalidArgumentError("not an ELF shared library");
  }
  if (header.e_ident[EI_CLASS] != ELFCLASS64) return Bad("not a 64-bit file");
  constexpr unsigned char kByteOrder =
      std::endian::native == std::endian::little ? ELFDATA2LSB : ELFDATA2MSB;
  if (header.e_ident[EI_DATA] != kByteOrder) return Bad("of the other byte order");
  if (header.e_machine != kMachine) {
    return Bad(absl::StrCat("for another machine (ELF machine ", header.e_machine, ", this is ",
                            kMachine, ")"));
  }
  if (header.e_type != ET_DYN) {
    return absl::InvalidArgumentError(
        absl::StrCat("not an ELF shared library (ELF type ", header.e_type, ")"));
  }
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
      header.e_phnum > kMaxProgramHeaders) {
    return Bad("odd program header table");
  }
  return absl::OkStatus();
}

// The NUL-terminated text at `offset` of the string table; false when it does not end in there.
bool TextAt(const std::string& strings, uint64_t offset, absl::string_view* text) {
  if (offset >= strings.size()) return false;
  const size_t end = strings.find('\0', offset);
  if (end == std::string::npos) return false;
  *text = absl::string_view(strings).substr(offset, end - offset);
  return true;
}

// Names go to logs and terminals.
std::string Printable(absl::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return out;
}

}  // namespace

absl::StatusOr<ElfFile> ElfFile::Read(int fd) {
  Elf64_Ehdr header{};
  struct stat st {};
  if (fstat(fd, &st) != 0) return ErrnoStatus(errno, "fstat");
  if (!S_ISREG(st.st_mode)) return absl::InvalidArgumentError("not a regular file");
  if (!ReadFully(fd, 0, &header, sizeof(header))) {
    return absl::InvalidArgumentError("not an ELF shared library (too short)");
  }
  VIRTBAY_RETURN_IF_ERROR(CheckHeader(header));

  // It comes last in the file: a linker that is still writing has not come to it.
  uint64_t sections_end = 0;
  if (__builtin_add_overflow(header.e_shoff, uint64_t{header.e_shnum} * header.e_shentsize,
                             &sections_end) ||
      sections_end > static_cast<uint64_t>(st.st_size)) {
    return Bad("cut off before the end of its section headers");
  }
  std::vector<Elf64_Phdr> headers(header.e_phnum);
  if (!ReadFully(fd, header.e_phoff, headers.data(), headers.size() * sizeof(Elf64_Phdr))) {
    return Bad("program headers beyond the end of the file");
  }
  ElfFile file;
  const Elf64_Phdr* dynamic_header = nullptr;
  const uint64_t file_size = static_cast<uint64_t>(st.st_size);
  for (const Elf64_Phdr& h : headers) {
    if (h.p_type == PT_DYNAMIC) dynamic_header = &h;
    if (h.p_type != PT_LOAD) continue;
    uint64_t end = 0;
    if (__builtin_add_overflow(h.p_offset, h.p_filesz, &end) || end > file_size ||
        __builtin_add_overflow(h.p_vaddr, h.p_filesz, &end)) {
      return Bad("a segment beyond the end of the file (is it cut short?)");
    }
    file.segments_.push_back({h.p_vaddr, h.p_offset, h.p_filesz});
  }
  if (dynamic_header == nullptr) return Bad("no dynamic section");
  VIRTBAY_ASSIGN_OR_RETURN(const Dynamic dynamic, file.ReadDynamic(fd, *dynamic_header));
  VIRTBAY_RETURN_IF_ERROR(file.ReadSymbols(fd, dynamic));
  return file;
}

uint64_t ElfFile::Available(uint64_t address) const {
  for (const Segment& segment : segments_) {
    if (address >= segment.address && address - segment.address < segment.size) {
      return segment.size - (address - segment.address);
    }
  }
  return 0;
}

bool ElfFile::ReadAt(int fd, uint64_t address, void* to, size_t len) const {
  for (const Segment& segment : segments_) {
    if (address < segment.address) continue;
    const uint64_t offset = address - segment.address;
    if (offset >= segment.size || len > segment.size - offset) continue;
    return ReadFully(fd, segment.offset + offset, to, len);
  }
  return false;
}

template <typename Container>
bool ElfFile::ReadItems(int fd, uint64_t address, uint64_t count, Container* to) const {
  constexpr size_t kItem = sizeof(typename Container::value_type);
  // A count is only a number until the file is seen to be that long.
  if (count > Available(address) / kItem) return false;
  to->resize(static_cast<size_t>(count));
  return count == 0 || ReadAt(fd, address, to->data(), to->size() * kItem);
}

absl::StatusOr<ElfFile::Dynamic> ElfFile::ReadDynamic(int fd, const Elf64_Phdr& header) const {
  const uint64_t count =
      std::min<uint64_t>(header.p_filesz / sizeof(Elf64_Dyn), kMaxDynamicEntries);
  std::vector<Elf64_Dyn> entries;
  // By address, as the dynamic linker does; p_offset need not agree.
  if (count == 0 || !ReadItems(fd, header.p_vaddr, count, &entries)) {
    return Bad("dynamic section outside the file");
  }
  Dynamic dynamic;
  for (const Elf64_Dyn& entry : entries) {
    if (entry.d_tag == DT_NULL) break;
    switch (entry.d_tag) {
      case DT_SYMTAB:
        dynamic.symbols = entry.d_un.d_ptr;
        break;
      case DT_STRTAB:
        dynamic.strings = entry.d_un.d_ptr;
        break;
      case DT_STRSZ:
        dynamic.strings_size = entry.d_un.d_val;
        break;
      case DT_SYMENT:
        if (entry.d_un.d_val != sizeof(Elf64_Sym)) return Bad("odd symbol size");
        break;
      case DT_HASH:
        dynamic.sysv_hash = entry.d_un.d_ptr;
        break;
      case DT_GNU_HASH:
        dynamic.gnu_hash = entry.d_un.d_ptr;
        break;
      case DT_NEEDED:
        dynamic.needed.push_back(entry.d_un.d_val);
        break;
      default:
        break;
    }
  }
  return dynamic;
}

absl::StatusOr<size_t> ElfFile::CountSymbols(int fd, const Dynamic& dynamic) const {
  if (dynamic.sysv_hash != 0) {
    uint32_t head[2];  // nbucket, nchain; the latter is the number of symbols
    if (!ReadAt(fd, dynamic.sysv_hash, head, sizeof(head))) return Bad("hash table outside");
    return size_t{head[1]};
  }
  if (dynamic.gnu_hash != 0) return CountByGnuHash(fd, dynamic.gnu_hash);
  return Bad("no symbol hash table");
}

absl::StatusOr<size_t> ElfFile::CountByGnuHash(int fd, uint64_t address) const {
  uint32_t head[4];  // nbuckets, first hashed symbol, bloom words, bloom shift
  if (!ReadAt(fd, address, head, sizeof(head))) return Bad("GNU hash table outside");
  const uint64_t buckets = head[0];
  const uint64_t first = head[1];
  const uint64_t bloom = head[2];
  if (buckets == 0 || buckets > kMaxHashWords || bloom > kMaxHashWords || first > kMaxSymbols) {
    return Bad("odd GNU hash table");
  }
  // Addresses that wrap are in no segment, or in one where the reads below stay inside it.
  const uint64_t buckets_at = address + sizeof(head) + bloom * sizeof(uint64_t);
  const uint64_t chains_at = buckets_at + buckets * sizeof(uint32_t);
  std::vector<uint32_t> words;
  if (!ReadItems(fd, buckets_at, buckets, &words)) {
    return Bad("GNU hash buckets outside");
  }
  const uint64_t last_chain = *std::max_element(words.begin(), words.end());
  if (last_chain == 0) return static_cast<size_t>(first);  // nothing is exported
  if (last_chain < first || last_chain > kMaxSymbols) return Bad("odd GNU hash bucket");

  // The chain of the last bucket ends at the last symbol: a word with bit 0 set.
  const uint64_t chain_at = chains_at + (last_chain - first) * sizeof(uint32_t);
  const uint64_t rest =
      std::min<uint64_t>(Available(chain_at) / sizeof(uint32_t), kMaxSymbols - last_chain);
  if (rest == 0 || !ReadItems(fd, chain_at, rest, &words)) {
    return Bad("GNU hash chains outside");
  }
  const auto end = std::find_if(words.begin(), words.end(), [](uint32_t w) { return w & 1; });
  if (end == words.end()) return Bad("GNU hash chain without an end");
  return static_cast<size_t>(last_chain) + static_cast<size_t>(end - words.begin()) + 1;
}

absl::Status ElfFile::ReadSymbols(int fd, const Dynamic& dynamic) {
  if (dynamic.strings_size == 0 || dynamic.strings_size > kMaxStrings) {
    return Bad("odd string table size");
  }
  std::string strings;
  if (!ReadItems(fd, dynamic.strings, dynamic.strings_size, &strings)) {
    return Bad("string table outside");
  }
  size_t name_bytes = 0;
  const auto name_at = [&](uint64_t offset, std::string* name) -> absl::Status {
    absl::string_view text;
    if (!TextAt(strings, offset, &text)) return Bad("a name outside the string table");
    // Many symbols may share one long name.
    name_bytes += text.size();
    if (name_bytes > kMaxNameBytes) return Bad("names too long");
    *name = Printable(text);
    return absl::OkStatus();
  };

  for (const uint64_t offset : dynamic.needed) {
    VIRTBAY_RETURN_IF_ERROR(name_at(offset, &needed_.emplace_back()));
  }
  VIRTBAY_ASSIGN_OR_RETURN(const size_t count, CountSymbols(fd, dynamic));
  if (count > kMaxSymbols) return Bad("too many symbols");
  std::vector<Elf64_Sym> table;
  if (!ReadItems(fd, dynamic.symbols, count, &table)) {
    return Bad("symbol table outside");
  }
  for (const Elf64_Sym& s : table) {
    const auto binding = ELF64_ST_BIND(s.st_info);
    const auto visibility = ELF64_ST_VISIBILITY(s.st_other);
    const bool global = binding == STB_GLOBAL || binding == STB_WEAK || binding == STB_GNU_UNIQUE;
    if (s.st_shndx == SHN_UNDEF || !global ||
        (visibility != STV_DEFAULT && visibility != STV_PROTECTED)) {
      continue;
    }
    Symbol symbol;
    VIRTBAY_RETURN_IF_ERROR(name_at(s.st_name, &symbol.name));
    symbol.value = s.st_value;
    symbol.size = s.st_size;
    symbol.type = ELF64_ST_TYPE(s.st_info);
    symbol.unique = binding == STB_GNU_UNIQUE;
    symbols_.push_back(std::move(symbol));
  }
  return absl::OkStatus();
}

const ElfFile::Symbol* ElfFile::Find(absl::string_view name) const {
  for (const Symbol& symbol : symbols_) {
    if (symbol.name == name) return &symbol;
  }
  return nullptr;
}

}  // namespace virtbay
