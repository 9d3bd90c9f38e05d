// The restricted-dma-pool nodes of a flattened device tree as the kernel shows it: a directory per
// node, a file per property, cells big-endian (Devicetree Specification 0.4, 2.3 and 3.5).
#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "hostif/swiotlb/guest/file.h"
#include "hostif/swiotlb/guest/pools.h"

namespace virtbay::guest_tool {
namespace {

constexpr size_t kMaxProperty = 4096;  // bytes
constexpr size_t kMaxNodes = 65536;
constexpr int kMaxDepth = 16;
constexpr size_t kMaxPools = 64;
constexpr size_t kMaxDevices = 16;  // of one pool
constexpr size_t kMaxPath = 255;    // bytes of a node's path
constexpr uint64_t kPage = 4096;

std::optional<std::string> Property(const std::string& node, const char* name) {
  FileText file = ReadFile(node + "/" + name, kMaxProperty);
  if (!file.ok()) return std::nullopt;
  return std::move(file.text);
}

uint32_t Cell(std::string_view bytes, size_t index) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value = value << 8 | static_cast<unsigned char>(bytes[index * 4 + i]);
  }
  return value;
}

// A property that is one cell; nothing when there is none such.
std::optional<uint32_t> CellProperty(const std::string& node, const char* name) {
  const auto bytes = Property(node, name);
  if (!bytes || bytes->size() != 4) return std::nullopt;
  return Cell(*bytes, 0);
}

std::optional<uint32_t> Phandle(const std::string& node) {
  const auto current = CellProperty(node, "phandle");
  return current ? current : CellProperty(node, "linux,phandle");
}

// A string list holds the word.
bool Holds(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    const size_t end = std::min(list.find('\0'), list.size());
    if (list.substr(0, end) == word) return true;
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return false;
}

std::vector<std::string> SubNodes(const std::string& node) {
  std::vector<std::string> names;
  DIR* const directory = ::opendir(node.c_str());
  if (directory == nullptr) return names;
  while (const dirent* entry = ::readdir(directory)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat info = {};
    // lstat: a link would lead out of the tree, or round in it.
    if (::lstat((node + "/" + name).c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
      names.push_back(name);
    }
    if (names.size() >= kMaxNodes) break;
  }
  ::closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<uint64_t> Number(std::string_view cells, size_t at, uint32_t count) {
  uint64_t value = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (value >> 32 != 0) return std::nullopt;
    value = value << 32 | Cell(cells, at + i);
  }
  return value;
}

Pool PoolOf(const std::string& node, uint32_t address_cells, uint32_t size_cells) {
  const auto reg = Property(node, "reg");
  if (!reg) return {0, 0, "it has no usable reg property: the kernel has chosen its place"};
  if (address_cells == 0 || address_cells > 3 || size_cells == 0 || size_cells > 2) {
    return {0, 0, "the cells of its addresses and sizes cannot be read"};
  }
  const size_t cells = address_cells + size_cells;
  if (reg->empty() || reg->size() % (cells * 4) != 0) {
    return {0, 0, "its reg property is not made of whole entries"};
  }
  if (reg->size() != cells * 4) return {0, 0, "its reg property has more than one range"};
  const auto base = Number(*reg, 0, address_cells);
  const auto size = Number(*reg, address_cells, size_cells);
  if (!base || !size || *size > UINT64_MAX - *base) return {0, 0, "its range wraps"};
  if (*size == 0) return {0, 0, "its size is 0"};
  if (*base % kPage != 0 || *size % kPage != 0) {
    return {0, 0, "its range is not made of whole pages"};
  }
  if (*size > uint64_t{1} << 32) return {0, 0, "its size is above 4 GiB"};
  return {*base, *size, ""};
}

// Unlike the pool of hv_pci devices one of these may lie anywhere in memory, and one above 4 GiB
// is right for devices that address as much; the kernel finds out only when it maps a buffer.
std::string NoteOf(const Pool& pool) {
  if (pool.size == 0 || pool.base + pool.size <= uint64_t{1} << 32) return "";
  return "it reaches above 4 GiB: only for devices that address more than 32 bits";
}

class Walk {
 public:
  Walk(std::string tree, bool* truncated) : tree_(std::move(tree)), truncated_(truncated) {}

  std::vector<RestrictedPool> Run() {
    FindPools();
    if (!by_phandle_.empty()) Visit("", 0);
    return std::move(pools_);
  }

 private:
  void FindPools() {
    const std::string parent = tree_ + "/reserved-memory";
    // Without the properties a reader has to assume 2 and 1 (2.3.5).
    const uint32_t address_cells = CellProperty(parent, "#address-cells").value_or(2);
    const uint32_t size_cells = CellProperty(parent, "#size-cells").value_or(1);
    for (const std::string& name : SubNodes(parent)) {
      const std::string node = parent + "/" + name;
      const auto compatible = Property(node, "compatible");
      if (!compatible || !Holds(*compatible, "restricted-dma-pool")) continue;
      const auto status = Property(node, "status");
      if (status && !Holds(*status, "okay") && !Holds(*status, "ok")) continue;
      const std::string path = "/reserved-memory/" + name;
      if (pools_.size() >= kMaxPools || path.size() > kMaxPath) {
        *truncated_ = true;
        continue;
      }
      const auto phandle = Phandle(node);
      if (phandle) by_phandle_.emplace(*phandle, pools_.size());
      RestrictedPool pool;
      pool.node = path;
      pool.pool = PoolOf(node, address_cells, size_cells);
      pool.note = NoteOf(pool.pool);
      pools_.push_back(std::move(pool));
    }
  }

  void Visit(const std::string& path, int depth) {
    if (depth > kMaxDepth || path.size() > kMaxPath || ++nodes_ > kMaxNodes) {
      *truncated_ = true;
      return;
    }
    const std::string node = tree_ + path;
    if (const auto regions = Property(node, "memory-region")) {
      for (size_t i = 0; (i + 1) * 4 <= regions->size(); ++i) {
        const auto found = by_phandle_.find(Cell(*regions, i));
        if (found == by_phandle_.end()) continue;
        std::vector<std::string>& devices = pools_[found->second].devices;
        if (devices.size() >= kMaxDevices) {
          *truncated_ = true;
        } else if (std::find(devices.begin(), devices.end(), path) == devices.end()) {
          devices.push_back(path.empty() ? "/" : path);
        }
      }
    }
    for (const std::string& name : SubNodes(node)) Visit(path + "/" + name, depth + 1);
  }

  const std::string tree_;
  bool* const truncated_;
  std::vector<RestrictedPool> pools_;
  std::map<uint32_t, size_t> by_phandle_;
  size_t nodes_ = 0;
};

}  // namespace

std::vector<RestrictedPool> ReadRestrictedPools(const std::string& tree, bool* truncated) {
  return Walk(tree, truncated).Run();
}

}  // namespace virtbay::guest_tool
