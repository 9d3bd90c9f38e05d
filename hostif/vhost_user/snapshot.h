// What a server's front-end has told it, and where their conversation stands, as values: for the
// server of another process to go on with (Server::Freeze, Server::Adopt). Descriptors are of the
// snapshot's own. Plain values; [control]. What comes from another process is hostile.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_SNAPSHOT_H_
#define VIRTBAY_HOSTIF_VHOST_USER_SNAPSHOT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "framework/base/shared_fd.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/fd_list.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

// As of Rings::Ring.
struct RingSnapshot {
  uint16_t size = 0;
  uint32_t base = 0;  // while it runs: of where it started
  bool base_given = false;
  bool addressed = false;
  bool enabled = false;
  bool runs = false;
  bool waiting = false;
  bool started = false;  // and was stopped by the device
  bool told = false;
  uint64_t descriptors = 0;
  uint64_t avail = 0;
  uint64_t used = 0;
  SharedFd kick;
  SharedFd call;
  SharedFd error;
};

struct SessionSnapshot {
  uint64_t features = 0;  // without bit 30
  bool features_set = false;
  bool protocol_features_acknowledged = false;
  uint64_t protocol_features = 0;
  uint8_t status = 0;
  std::vector<RingSnapshot> rings;
  bool has_memory = false;  // a table has come, which may be empty
  std::vector<RegionDescription> regions;
  std::vector<UniqueFd> region_fds;  // of each region
  UniqueFd backend;                  // the back-end channel
  InflightDescription in_flight{};
  UniqueFd in_flight_fd;
};

struct ConnectionSnapshot {
  UniqueFd socket;
  SessionSnapshot session;
  bool config_changed = false;    // the front-end is still to be told
  std::vector<std::byte> read;    // of a message that has not come as a whole
  FdList read_fds;                // with it
  std::vector<std::byte> unsent;  // of a reply
  UniqueFd unsent_fd;             // with its first byte
};

struct ServerSnapshot {
  UniqueFd listener;
  // Of the socket file; empty: it was given the socket. The path is absolute.
  std::string path;
  uint64_t device = 0;
  uint64_t inode = 0;
  std::optional<ConnectionSnapshot> connection;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_SNAPSHOT_H_
