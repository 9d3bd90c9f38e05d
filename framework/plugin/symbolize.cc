#include "framework/plugin/symbolize.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "framework/base/unique_fd.h"

namespace virtbay {
namespace {

constexpr uint64_t kMaxTable = uint64_t{256} << 20;

// The functions of one file, by address.
class Functions {
 public:
  // What cannot be read gives none.
  static Functions Read(int fd) {
    Functions functions;
    Elf64_Ehdr header{};
    if (!ReadAt(fd, 0, &header, sizeof(header)) ||
        std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_shentsize != sizeof(Elf64_Shdr)) {
      return functions;
    }
    std::vector<Elf64_Shdr> sections(header.e_shnum);
    if (!ReadAt(fd, header.e_shoff, sections.data(), sections.size() * sizeof(Elf64_Shdr))) {
      return functions;
    }
    // The dynamic table has part of what the full one has, which may have been stripped.
    for (const uint32_t wanted : {uint32_t{SHT_SYMTAB}, uint32_t{SHT_DYNSYM}}) {
      for (const Elf64_Shdr& section : sections) {
        if (section.sh_type == wanted && section.sh_link < sections.size()) {
          functions.ReadTable(fd, section, sections[section.sh_link]);
        }
      }
      if (!functions.entries_.empty()) break;
    }
    std::sort(functions.entries_.begin(), functions.entries_.end(),
              [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
    return functions;
  }

  // "name+0x12", or nothing.
  std::string At(uint64_t address) const {
    auto next = std::upper_bound(entries_.begin(), entries_.end(), address,
                                 [](uint64_t at, const Entry& entry) { return at < entry.begin; });
    if (next == entries_.begin()) return "";
    const Entry& entry = *--next;
    if (address >= entry.begin + std::max<uint64_t>(entry.size, 1)) return "";
    const char* name = names_.data() + entry.name;
    int status = 0;
    const std::unique_ptr<char, decltype(&std::free)> plain(
        abi::__cxa_demangle(name, nullptr, nullptr, &status), &std::free);
    return absl::StrCat(status == 0 ? plain.get() : name, "+0x", absl::Hex(address - entry.begin));
  }

 private:
  struct Entry {
    uint64_t begin = 0;
    uint64_t size = 0;
    size_t name = 0;
  };

  static bool ReadAt(int fd, uint64_t offset, void* to, size_t size) {
    return size <= kMaxTable &&
           pread(fd, to, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
  }

  void ReadTable(int fd, const Elf64_Shdr& table, const Elf64_Shdr& strings) {
    if (table.sh_size > kMaxTable || strings.sh_size > kMaxTable) return;
    std::vector<Elf64_Sym> symbols(table.sh_size / sizeof(Elf64_Sym));
    std::string names(strings.sh_size, '\0');
    if (!ReadAt(fd, table.sh_offset, symbols.data(), symbols.size() * sizeof(Elf64_Sym)) ||
        !ReadAt(fd, strings.sh_offset, names.data(), names.size())) {
      return;
    }
    for (const Elf64_Sym& symbol : symbols) {
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF ||
          symbol.st_name >= names.size()) {
        continue;
      }
      entries_.push_back({symbol.st_value, symbol.st_size, symbol.st_name});
    }
    names_ = std::move(names);
  }

  std::vector<Entry> entries_;
  std::string names_;  // std::string ends them, whatever the file says
};

struct Image {
  uint64_t bias = 0;  // what was added to the addresses of the file
  std::string shown;
  Functions functions;
};

class Images {
 public:
  explicit Images(const ImageFile& plugin) : plugin_(plugin) {
    Dl_info info{};
    if (plugin.inside != nullptr && dladdr(plugin.inside, &info) != 0) {
      plugin_base_ = info.dli_fbase;
    }
  }

  bool IsPlugin(const Image& image) const { return &image == plugin_image_; }
  // The image of an address, or nullptr.
  const Image* Of(const void* address) {
    Dl_info info{};
    link_map* map = nullptr;
    if (dladdr1(address, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) {
      return nullptr;
    }
    const auto [found, is_new] = images_.try_emplace(info.dli_fbase);
    Image& image = found->second;
    if (!is_new) return &image;
    image.bias = map->l_addr;
    if (info.dli_fbase == plugin_base_) {
      plugin_image_ = &image;
      image.shown = plugin_.shown;
      image.functions = Functions::Read(plugin_.fd);
      return &image;
    }
    image.shown = info.dli_fname;
    // The program's own name may be relative to another directory, or be gone.
    const bool program = map->l_name == nullptr || map->l_name[0] == '\0';
    const UniqueFd fd(open(program ? "/proc/self/exe" : info.dli_fname, O_RDONLY | O_CLOEXEC));
    struct stat what {};
    if (fd.valid() && fstat(fd.get(), &what) == 0 && S_ISREG(what.st_mode)) {
      image.functions = Functions::Read(fd.get());
    }
    return &image;
  }

 private:
  const ImageFile plugin_;
  const void* plugin_base_ = nullptr;
  const Image* plugin_image_ = nullptr;
  std::map<const void*, Image> images_;
};

}  // namespace

std::vector<std::string> SymbolizeStack(std::span<void* const> frames, const ImageFile& plugin) {
  Images images(plugin);
  std::vector<std::string> lines;
  size_t shown = 0;  // up to the last one that is the plugin's
  for (size_t i = 0; i < frames.size(); ++i) {
    // A return address may already be the next function's.
    const char* const code = static_cast<const char*>(frames[i]) - (i == 0 ? 0 : 1);
    const Image* const image = images.Of(code);
    std::string line = absl::StrCat("#", i, " ");
    if (image == nullptr) {
      absl::StrAppend(&line, "0x", absl::Hex(reinterpret_cast<uintptr_t>(frames[i])));
    } else {
      const uint64_t at = reinterpret_cast<uintptr_t>(code) - image->bias;
      const std::string name = image->functions.At(at);
      absl::StrAppend(&line, name.empty() ? "?" : name, " in ", image->shown, "+0x", absl::Hex(at));
    }
    lines.push_back(std::move(line));
    if (image != nullptr && images.IsPlugin(*image)) shown = lines.size();
  }
  if (shown > 0) lines.resize(shown);
  return lines;
}

}  // namespace virtbay
