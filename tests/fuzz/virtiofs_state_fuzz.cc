// Fuzz target: states of a virtiofs device. The tree that they are about is there, and what they
// say was open is opened, so that what they say of it is believed; unless the last byte is odd,
// then a descriptor is left out. The form is that of tests/data/state. What is taken over is used,
// saved, and taken over by another one.
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <tuple>
#include <vector>

#include "tests/support/bare_fs.h"
#include "tests/support/state_parts.h"
#include "tests/support/state_tree.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace virtbay::testing;
namespace state = virtbay::virtiofs::state;

void Expect(bool holds) {
  if (!holds) abort();
}

bool Restore(BareFs* to, std::span<const std::byte> bytes, std::vector<virtbay_state_fd> fds) {
  virtbay::sdk::StateReader reader(state::kVersion, bytes, fds);
  return reader.ok() && virtbay::virtiofs::RestoreState(to->fs(), &reader).ok();
}

void Use(BareFs* device) {
  virtbay::virtiofs::Fs& fs = device->fs();
  std::vector<uint64_t> nodes;
  fs.inodes.ForEach(
      [&](const virtbay::virtiofs::Inode& inode) { nodes.push_back(inode.nodeid()); });
  for (const uint64_t node : nodes) {
    const auto inode = fs.inodes.Find(node);
    if (!inode) continue;
    struct statx st;
    std::ignore = fs.Stat(*inode, &st);
    std::array<char, 256> name;
    if (const auto parent = fs.inodes.CopyName(*inode, &name)) {
      Expect(static_cast<bool>(fs.inodes.FindByName(*parent, name.data())));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const StateTree tree;
  StateParts parts(std::as_bytes(std::span(data, size)));
  // What other sections a state has is nothing to anybody.
  for (uint32_t tag = state::kSession; tag <= state::kHandedBack; ++tag) parts.Bytes(tag);
  tree.Localise(&parts);
  std::vector<virtbay_state_fd> fds = tree.Open(&parts);
  if (size > 0 && (data[size - 1] & 1) != 0 && !fds.empty()) {
    close(fds.back().fd);
    fds.pop_back();
  }
  const bool aggregate = parts.Bytes(state::kSession).size() >= sizeof(state::Session) &&
                         (parts.Get<state::Session>(state::kSession).flags & 1) != 0;
  BareFs::Options options{{"host.restores", "true"}, {"max-inodes", "100000"}};
  if (aggregate) {
    options.emplace("aggregate", "true");
    options.emplace("xattr", "");
  } else {
    options.emplace("shared-dir", tree.dir().path().native());
  }
  BareFs device(options);
  Expect(device.ok());
  if (!Restore(&device, parts.Whole(), fds)) return 0;
  Use(&device);
  virtbay::sdk::StateWriter again;
  Expect(virtbay::virtiofs::SaveState(device.fs(), &again).ok());
  BareFs next(options);
  std::vector<virtbay_state_fd> copies;
  for (const virtbay_state_fd& fd : again.fds()) {
    copies.push_back({fd.role, fcntl(fd.fd, F_DUPFD_CLOEXEC, 3)});
  }
  Expect(Restore(&next, again.bytes(), copies));
  Expect(next.fs().inodes.count() == device.fs().inodes.count());
  Use(&next);
  return 0;
}
