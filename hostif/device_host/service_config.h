// What one run of the executable serves: filled from the command line, a TOML file or a control
// request, read by Service.
// Owned by value; plain data, no thread of its own.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_CONFIG_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_CONFIG_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "framework/base/log.h"
#include "hostif/device_host/guest_address.h"
#include "hostif/shares/shares.h"
#include "virtbay/host.h"

namespace virtbay::device_host {

// A share that an aggregate virtiofs device begins with.
struct ShareConfig {
  shares::ShareSpec spec;
  std::string origin;  // "FILE:LINE" of it; empty elsewhere
};

// Payload of an error: the "FILE:LINE" that it is about, when that is not the device's.
inline constexpr char kOriginPayload[] = "virtbay/origin";

// `swiotlb = "pool"`, and `"pool,all"` beside other devices that say so.
enum class PoolUse { kNone, kSlice, kAll };

// One device and the socket that its front-end connects to.
struct DeviceConfig {
  DeviceSpec spec;
  std::string socket_path;   // bound and listened on; empty when fd is used
  int socket_fd = -1;        // inherited listening socket, taken over by the service
  std::string socket_group;  // group that may connect; empty: the owner alone

  // What it takes of the pool that the guest reports. Without a pool the device bounces.
  PoolUse guest_pool = PoolUse::kNone;
  uint64_t slice_size = 0;  // bytes; 0: an equal share
  // spec.aperture is others' as well that say so: `"0xBASE,SIZE,all"`, or an option string of WSL,
  // whose kernel has one pool for all devices.
  bool aperture_shared = false;
  bool dma_given = false;    // `dma` was, which says something else
  bool arena_given = false;  // `arena-size` was: the size of the slice as well

  // `device-string`: the device's options as WSL writes them; FinishDevice puts them in their
  // place.
  std::string device_string;
  std::vector<std::string> warnings;  // of what it ignored, said when the device is made

  std::vector<ShareConfig> shares;  // of an aggregate; it is one if it has any

  std::string record_file;  // what it is sent and answers goes there from the start; empty: nowhere
  bool record_payload = false;  // all bytes of it

  // "FILE:LINE" of the device, for errors found after the file was read; empty elsewhere.
  std::string origin;
  std::map<std::string, std::string> option_origins;  // the same of each option, by its name
};

struct ServiceConfig {
  LogLevel log_level = LogLevel::kInfo;
  bool syslog = false;                        // the log goes to syslog(3) instead of stderr
  std::string control_socket;                 // empty: none
  std::optional<GuestAddress> guest_channel;  // where the guest reports; none: nowhere
  std::vector<std::filesystem::path> plugin_dirs;
  // Wanted RLIMIT_NOFILE; 0 leaves it alone, none: as many as allowed, at most 1,000,000.
  std::optional<uint64_t> rlimit_nofile;
  // A fault on a truncated guest file stops that ring instead of the process.
  bool sigbus_guard = true;
  // Of the arena that devices with `arena-policy = "shared"` have together.
  uint64_t shared_arena_size = HostOptions().shared_arena_size;
  // Gets a newline once every device listens, and is closed; -1: none.
  int ready_fd = -1;
  // Where devices keep what another process goes on with; empty: nowhere.
  std::filesystem::path state_dir;
  bool contain = false;  // crashes of plugins, for development
  bool watch = false;    // devices are reloaded when the file of their plugin changes
  std::vector<DeviceConfig> devices;
  bool pool_requested = false;        // the guest's kernel was asked for a bounce pool
  std::vector<std::string> warnings;  // said at the start
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_CONFIG_H_
