// virtbay: serves virtio devices over vhost-user. Exit status 0, 1 on a failure, 2 on wrong usage.
#include <fcntl.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <streambuf>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "framework/base/status.h"
#include "hostif/device_host/arguments.h"
#include "hostif/device_host/commands.h"

namespace virtbay::device_host {
namespace {

// One line, whatever the message holds.
void Complain(absl::string_view message) {
  std::string line(message);
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  std::cerr << "virtbay: " << line << std::endl;
}

// Installed under virtiofsd's name it takes virtiofsd's command line, so that a VMM's configured
// path can be switched by a link.
std::vector<std::string> Arguments(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const absl::string_view name = argv[0];
  if (absl::EndsWith(name, "virtiofsd")) {
    arguments.insert(arguments.begin(), {"serve", "virtiofs"});
  }
  return arguments;
}

// A descriptor that is closed here would be given to the next file, which would then get the log.
void OpenStandardStreams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one. Writing to a standard output that was closed still fails.
    static_cast<void>(::open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY));
  }
}

// Where std::cout writes to: stdout as ever, but neither of the two keeps what made a write fail.
// [any]; plugins may use std::cout on threads of their own.
class StandardOutput final : public std::streambuf {
 public:
  // The errno of the first failure, or 0.
  int error() const { return error_; }

 protected:
  std::streamsize xsputn(const char* text, std::streamsize size) override {
    const size_t written = std::fwrite(text, 1, static_cast<size_t>(size), stdout);
    if (written < static_cast<size_t>(size)) Failed(errno);
    return static_cast<std::streamsize>(written);
  }
  int_type overflow(int_type c) override {
    if (traits_type::eq_int_type(c, traits_type::eof())) return traits_type::not_eof(c);
    const int written = std::fputc(c, stdout);
    if (written == EOF) Failed(errno);
    return written;
  }
  int sync() override {
    if (std::fflush(stdout) == 0) return 0;
    Failed(errno);
    return -1;
  }

 private:
  void Failed(int error) {
    int none = 0;
    error_.compare_exchange_strong(none, error);
  }

  std::atomic<int> error_ = 0;
};

// What is left of the output is written only now.
int Finish(const StandardOutput& output, int status) {
  std::cout.flush();
  // A reader that is gone wanted no more, as in `| head`.
  if (status != kExitOk || output.error() == 0 || output.error() == EPIPE) return status;
  Complain(ErrnoStatus(output.error(), "standard output").message());
  return kExitFailure;
}

int Main(int argc, char** argv) {
  OpenStandardStreams();
  CLI::App app{"virtbay serves virtio devices, each in a bay of its own, over vhost-user",
               "virtbay"};
  // Not require_subcommand(1): that would hide what is wrong with an unknown option.
  app.require_subcommand(0, 1);
  app.set_version_flag("--version,-V", "virtbay " VIRTBAY_VERSION);
  app.footer("A flag stands alone or has a value: true, yes, on, 1, or false, no, off, 0.");
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(AddServeCommand(&app));
  commands.push_back(AddRunCommand(&app));
  commands.push_back(AddPluginCommand(&app));
  commands.push_back(AddCtlCommand(&app));
  commands.push_back(AddReloadCommand(&app));
  commands.push_back(AddTraceCommand(&app));
  commands.push_back(AddRecordCommand(&app));
  commands.push_back(AddReplayCommand(&app));

  std::vector<std::string> arguments = Arguments(argc, argv);
  if (const absl::Status status = CheckArguments(app, &arguments); !status.ok()) {
    Complain(absl::StrCat(status.message(), " (see virtbay --help)"));
    return kExitUsage;
  }
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
    for (const std::unique_ptr<Command>& command : commands) {
      if (!command->chosen()) continue;
      const absl::Status status = command->Run();
      if (status.ok()) return kExitOk;
      Complain(status.message());
      return kExitFailure;
    }
    throw CLI::RequiredError("A subcommand");
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help, --version
  } catch (const CLI::ParseError& error) {
    Complain(std::string(error.what()) + " (see virtbay --help)");
    return kExitUsage;
  }
}

}  // namespace
}  // namespace virtbay::device_host

int main(int argc, char** argv) {
  if (argc < 1) return virtbay::device_host::kExitUsage;
  // Never freed: the end of the process flushes std::cout once more.
  static auto* const output = new virtbay::device_host::StandardOutput;
  std::cout.rdbuf(output);
  int status = virtbay::device_host::kExitFailure;
  try {
    status = virtbay::device_host::Main(argc, argv);
  } catch (const std::exception& error) {
    virtbay::device_host::Complain(error.what());
  }
  return virtbay::device_host::Finish(*output, status);
}
