#include "plugins/virtiofs/ino_space.h"

namespace virtbay::virtiofs {

size_t InoSpace::Hash::operator()(const Key& key) const {
  uint64_t hash = key.dev * 0x9e3779b97f4a7c15u ^ (key.high << 20) ^ key.share;
  hash ^= hash >> 29;
  return static_cast<size_t>(hash * 0xbf58476d1ce4e5b9u);
}

uint64_t InoSpace::Prefix(uint32_t share, uint64_t dev, uint64_t ino) {
  const Key key{share, dev, ino >> kLowBits};
  const std::lock_guard<std::mutex> lock(mu_);
  const auto found = prefixes_.find(key);
  uint32_t prefix = 0;
  if (found != prefixes_.end()) {
    prefix = found->second;
  } else if (!free_.empty() || next_ < kPrefixes) {
    if (free_.empty()) {
      prefix = next_++;
    } else {
      prefix = free_.back();
      free_.pop_back();
    }
    prefixes_.emplace(key, prefix);
  } else {
    // Millions of patterns: a file system that spreads its numbers over all 64 bits, walked to the
    // end. Two files may meet from here on.
    prefix = 1 + static_cast<uint32_t>(Hash()(key) % (kPrefixes - 1));
  }
  return static_cast<uint64_t>(prefix) << kLowBits;
}

void InoSpace::Release(uint32_t share) {
  const std::lock_guard<std::mutex> lock(mu_);
  for (auto it = prefixes_.begin(); it != prefixes_.end();) {
    if (it->first.share == share) {
      free_.push_back(it->second);
      it = prefixes_.erase(it);
    } else {
      ++it;
    }
  }
}

std::vector<InoSpace::Entry> InoSpace::Entries() const {
  const std::lock_guard<std::mutex> lock(mu_);
  std::vector<Entry> entries;
  entries.reserve(prefixes_.size());
  for (const auto& [key, prefix] : prefixes_) {
    entries.push_back({key.share, prefix, key.dev, key.high});
  }
  return entries;
}

uint32_t InoSpace::next() const {
  const std::lock_guard<std::mutex> lock(mu_);
  return next_;
}

bool InoSpace::Restore(const std::vector<Entry>& entries, uint32_t next) {
  const std::lock_guard<std::mutex> lock(mu_);
  if (next == 0 || next > kPrefixes) return false;
  std::vector<bool> used(next, false);
  for (const Entry& entry : entries) {
    if (entry.prefix == 0 || entry.prefix >= next || used[entry.prefix] ||
        !prefixes_.emplace(Key{entry.share, entry.dev, entry.high}, entry.prefix).second) {
      return false;
    }
    used[entry.prefix] = true;
  }
  next_ = next;
  for (uint32_t prefix = next; prefix-- > 1;) {
    if (!used[prefix]) free_.push_back(prefix);
  }
  return true;
}

size_t InoSpace::used() const {
  const std::lock_guard<std::mutex> lock(mu_);
  return prefixes_.size();
}

}  // namespace virtbay::virtiofs
