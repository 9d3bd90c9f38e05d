// The subcommands: each adds itself to the command line and, once parsed, runs.
// Stateless but for the options it parses; [control], on the main thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_COMMANDS_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_COMMANDS_H_

#include <CLI/CLI.hpp>
#include <memory>

#include "absl/status/status.h"

namespace virtbay::device_host {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

class Command {
 public:
  virtual ~Command() = default;
  // [control] Whether the command line named it.
  virtual bool chosen() const = 0;
  // [control] Does it. A status is said on stderr (exit status 1); CLI::ParseError is a mistake
  // of usage that shows only here (exit status 2).
  virtual absl::Status Run() = 0;
};

std::unique_ptr<Command> AddServeCommand(CLI::App* app);
std::unique_ptr<Command> AddRunCommand(CLI::App* app);
std::unique_ptr<Command> AddPluginCommand(CLI::App* app);
std::unique_ptr<Command> AddCtlCommand(CLI::App* app);
std::unique_ptr<Command> AddReloadCommand(CLI::App* app);
std::unique_ptr<Command> AddTraceCommand(CLI::App* app);
std::unique_ptr<Command> AddRecordCommand(CLI::App* app);
std::unique_ptr<Command> AddReplayCommand(CLI::App* app);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_COMMANDS_H_
