// ServePlugin: `virtbay serve plugin FILE`: any plugin by name or path, with the options that every
// device has and its own by --option.
// Owned by the serve command; [control], on the main thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_PLUGIN_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_PLUGIN_H_

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/status.h"
#include "hostif/device_host/serve_options.h"

namespace virtbay::device_host {

class ServePlugin {
 public:
  explicit ServePlugin(CLI::App* serve);
  ServePlugin(const ServePlugin&) = delete;
  ServePlugin& operator=(const ServePlugin&) = delete;

  // Whether the command line named it.
  bool parsed() const { return app_->parsed(); }
  // Serves until it is told to stop; see Command::Run.
  absl::Status Run();

 private:
  CLI::App* const app_;
  ServeOptions common_;
  std::string file_;
  std::string type_;
  bool check_ = false;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_PLUGIN_H_
