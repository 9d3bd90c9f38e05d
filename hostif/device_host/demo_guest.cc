// virtbay_demo_guest TREE_SOCKET FILE_SOCKET: the demo's job for machines without user-mode Linux.
// Two guests of the in-process library, one per share and both at once: one makes, lists, reads
// back and removes a tree of small files, the other writes a large file and verifies it.
#include <fcntl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/guest/fuse_client.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/vhost_user_transport.h"

namespace virtbay::guest {
namespace {

constexpr int kDirectories = 20;
constexpr int kFilesPerDirectory = 100;
constexpr uint32_t kBlock = 1 << 20;
constexpr uint64_t kBlocks = 256;
constexpr int kPasses = 4;

absl::Status Check(int error, std::string_view what) {
  if (error == 0) return absl::OkStatus();
  const std::string text(what);
  return error > 0 ? ErrnoStatus(error, text) : ErrnoStatus(-error, absl::StrCat("guest: ", text));
}

absl::StatusOr<std::unique_ptr<FuseSession>> Mount(const std::string& socket) {
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport,
                           VhostUserTransport::Connect(socket));
  return FuseSession::Create(std::move(transport), {});
}

std::vector<std::byte> Contents(uint64_t seed, size_t size) {
  std::vector<std::byte> bytes(size);
  uint64_t state = seed * 2 + 1;
  for (size_t i = 0; i + sizeof(state) <= size; i += sizeof(state)) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(bytes.data() + i, &state, sizeof(state));
  }
  return bytes;
}

absl::Status MakeFile(FuseClient& fs, uint64_t parent, const std::string& name, uint64_t seed) {
  const auto created = fs.Create(parent, name, O_RDWR | O_EXCL, S_IFREG | 0644);
  VIRTBAY_RETURN_IF_ERROR(Check(created.error, "create"));
  const uint64_t node = created.value.entry.nodeid;
  const uint64_t handle = created.value.open.fh;
  const std::vector<std::byte> bytes = Contents(seed, 4096);
  VIRTBAY_RETURN_IF_ERROR(Check(fs.Write(node, handle, 0, bytes).error, "write"));
  const auto back = fs.Read(node, handle, 0, 4096);
  VIRTBAY_RETURN_IF_ERROR(Check(back.error, "read"));
  if (back.value != bytes) return absl::DataLossError("a small file reads back differently");
  VIRTBAY_RETURN_IF_ERROR(Check(fs.Release(node, handle), "release"));
  return Check(fs.Forget(node, 1), "forget");
}

absl::Status TreeJob(FuseClient& fs) {
  for (int d = 0; d < kDirectories; ++d) {
    const std::string directory = absl::StrCat("tree", d);
    const auto made = fs.Mkdir(kFuseRootId, directory, 0755);
    VIRTBAY_RETURN_IF_ERROR(Check(made.error, "mkdir"));
    const uint64_t parent = made.value.nodeid;
    for (int f = 0; f < kFilesPerDirectory; ++f) {
      VIRTBAY_RETURN_IF_ERROR(
          MakeFile(fs, parent, absl::StrCat("f", f), static_cast<uint64_t>(d * 1000 + f)));
    }
    for (int f = 0; f < kFilesPerDirectory; ++f) {
      const std::string name = absl::StrCat("f", f);
      const auto found = fs.Lookup(parent, name);
      VIRTBAY_RETURN_IF_ERROR(Check(found.error, "lookup"));
      if (found.value.attr.size != 4096) return absl::DataLossError("a file has a wrong size");
      VIRTBAY_RETURN_IF_ERROR(Check(fs.Unlink(parent, name), "unlink"));
      VIRTBAY_RETURN_IF_ERROR(Check(fs.Forget(found.value.nodeid, 1), "forget"));
    }
    VIRTBAY_RETURN_IF_ERROR(Check(fs.Rmdir(kFuseRootId, directory), "rmdir"));
  }
  return absl::OkStatus();
}

absl::Status FileJob(FuseClient& fs) {
  const auto created = fs.Create(kFuseRootId, "large", O_RDWR, S_IFREG | 0644);
  VIRTBAY_RETURN_IF_ERROR(Check(created.error, "create"));
  const uint64_t node = created.value.entry.nodeid;
  const uint64_t handle = created.value.open.fh;
  for (int pass = 0; pass < kPasses; ++pass) {
    for (uint64_t block = 0; block < kBlocks; ++block) {
      const auto bytes = Contents(block + static_cast<uint64_t>(pass), kBlock);
      const auto written = fs.Write(node, handle, block * kBlock, bytes);
      VIRTBAY_RETURN_IF_ERROR(Check(written.error, "write"));
      if (written.value != kBlock) return absl::DataLossError("a short write");
    }
    for (uint64_t block = 0; block < kBlocks; ++block) {
      const auto back = fs.Read(node, handle, block * kBlock, kBlock);
      VIRTBAY_RETURN_IF_ERROR(Check(back.error, "read"));
      if (back.value != Contents(block + static_cast<uint64_t>(pass), kBlock)) {
        return absl::DataLossError("the large file reads back differently");
      }
    }
  }
  VIRTBAY_RETURN_IF_ERROR(Check(fs.Release(node, handle), "release"));
  return Check(fs.Unlink(kFuseRootId, "large"), "unlink");
}

absl::Status Run(const std::string& socket, std::string_view what,
                 absl::Status (*job)(FuseClient&)) {
  const auto session = Mount(socket);
  if (!session.ok()) return Annotate(session.status(), socket);
  const auto start = std::chrono::steady_clock::now();
  VIRTBAY_RETURN_IF_ERROR(job((*session)->client()));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("  %.*s: %.1f s\n", static_cast<int>(what.size()), what.data(), seconds.count());
  return absl::OkStatus();
}

int Main(const std::string& tree_socket, const std::string& file_socket) {
  absl::Status tree;
  std::thread other(
      [&] { tree = Run(tree_socket, "2,000 small files made, read, removed", TreeJob); });
  const absl::Status file = Run(file_socket, "256 MiB written and verified, 4 times", FileJob);
  other.join();
  for (const absl::Status& status : {tree, file}) {
    if (!status.ok()) {
      std::cerr << "virtbay_demo_guest: " << status.message() << '\n';
    }
  }
  return tree.ok() && file.ok() ? 0 : 1;
}

}  // namespace
}  // namespace virtbay::guest

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: virtbay_demo_guest TREE_SOCKET FILE_SOCKET\n";
    return 2;
  }
  return virtbay::guest::Main(argv[1], argv[2]);
}
