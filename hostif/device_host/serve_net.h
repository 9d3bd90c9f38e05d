// ServeNet: `virtbay serve TYPE` of a network device: the options that every device has, those of
// every network device, and those of the type's own table.
// Owned by the serve command; [control], on the main thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_NET_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_NET_H_

#include <CLI/CLI.hpp>
#include <span>

#include "absl/status/status.h"
#include "hostif/device_host/serve_options.h"

namespace virtbay::device_host {

// An option of the plugin's: given again, its values are joined by commas.
struct NetOption {
  const char* flag;  // "--tap"
  const char* key;   // of the plugin
  const char* help;
  // A word before each value, whose order over several options of one key is kept; or none.
  const char* word = nullptr;
};

struct NetType {
  const char* name;  // of the subcommand, the plugin and, unless given, the device
  const char* help;
  std::span<const NetOption> options;
};

// The network devices that there are.
std::span<const NetType> NetTypes();

class ServeNet {
 public:
  ServeNet(CLI::App* serve, const NetType& type);
  ServeNet(const ServeNet&) = delete;
  ServeNet& operator=(const ServeNet&) = delete;

  // Whether the command line named it.
  bool parsed() const { return app_->parsed(); }
  // Serves until it is told to stop; see Command::Run.
  absl::Status Run();

 private:
  const NetType& type_;
  CLI::App* const app_;
  ServeOptions common_;
  bool check_ = false;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_NET_H_
