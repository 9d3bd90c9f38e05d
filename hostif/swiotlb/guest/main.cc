// virtbay-guest: tells what bounce pools a guest's kernel has set aside for its devices, and
// reports them to the host. A static program for the guest's init; exit status 0, 1 on a failure, 2
// on wrong usage.
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hostif/swiotlb/guest/pools.h"
#include "hostif/swiotlb/guest/send.h"

namespace virtbay::guest_tool {
namespace {

constexpr char kUsage[] =
    "virtbay-guest: the bounce pools that this kernel has set aside for its devices\n"
    "\n"
    "  --json            print all of them as one line of JSON (default)\n"
    "  --option          print the pool of hv_pci devices as swiotlb=0xBASE,SIZE\n"
    "  --device NODE     with --option: the restricted pool of this device-tree node instead\n"
    "  --send TARGET     send the JSON line to the host and wait for its answer:\n"
    "                    vsock:CID:PORT, unix:PATH, tcp:ADDRESS:PORT, device:PATH\n"
    "  --timeout SECONDS how long that may take (default 10)\n"
    "  --root DIR        look for sys/ and proc/ there\n"
    "  --help, --version\n"
    "\n"
    "Exit status: 0; 1 when there is no such pool to print, or the host did not accept the "
    "report;\n"
    "2 on wrong usage.\n";

struct Arguments {
  bool json = false;
  bool option = false;
  bool help = false;
  bool version = false;
  std::optional<std::string> device;
  std::optional<Target> target;
  int timeout_seconds = 10;
  std::string root;
};

int Complain(const std::string& text, int status) {
  std::string line = text;
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  std::fprintf(stderr, "virtbay-guest: %s\n", line.c_str());
  return status;
}

// Nothing, with the reason in `why`, for a command line that is not one.
std::optional<Arguments> Parse(const std::vector<std::string>& words, std::string* why) {
  Arguments arguments;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    const size_t equals = word.find('=');
    const std::string name(word.substr(0, equals));
    if (equals == std::string_view::npos) {
      if (name == "--json" || name == "--option" || name == "--help" || name == "--version") {
        arguments.json |= name == "--json";
        arguments.option |= name == "--option";
        arguments.help |= name == "--help";
        arguments.version |= name == "--version";
        continue;
      }
    }
    if (name != "--device" && name != "--send" && name != "--timeout" && name != "--root") {
      *why = "unknown option " + std::string(word) + " (see --help)";
      return std::nullopt;
    }
    std::string value;
    if (equals != std::string_view::npos) {
      value = word.substr(equals + 1);
    } else if (++i < words.size()) {
      value = words[i];
    }
    if (value.empty()) {
      *why = name + ": needs a value";
      return std::nullopt;
    }
    if (name == "--device") {
      arguments.device = value;
    } else if (name == "--root") {
      arguments.root = value;
    } else if (name == "--send") {
      arguments.target = ParseTarget(value, why);
      if (!arguments.target) {
        *why = "--send " + *why;
        return std::nullopt;
      }
    } else {
      const char* const end = value.data() + value.size();
      const auto result = std::from_chars(value.data(), end, arguments.timeout_seconds);
      if (result.ec != std::errc() || result.ptr != end || arguments.timeout_seconds < 1 ||
          arguments.timeout_seconds > 3600) {
        *why = "--timeout: is not a number of seconds between 1 and 3600";
        return std::nullopt;
      }
    }
  }
  if (arguments.device && !arguments.option) {
    *why = "--device: needs --option";
    return std::nullopt;
  }
  return arguments;
}

int PrintOption(const Report& report, const std::optional<std::string>& device) {
  Pool pool = report.hv_pci;
  std::string note;
  if (device) {
    pool = {0, 0, *device + ": no restricted pool of the device tree is for this node"};
    for (const RestrictedPool& candidate : report.restricted) {
      for (const std::string& user : candidate.devices) {
        if (user != *device) continue;
        pool = candidate.pool;
        note = candidate.note;
      }
    }
  }
  if (pool.size == 0) return Complain(pool.reason, 1);
  if (!note.empty()) Complain(*device + ": its pool: " + note, 0);
  std::printf("%s\n", FormatOption(pool).c_str());
  return 0;
}

int Main(const std::vector<std::string>& words) {
  std::string why;
  const std::optional<Arguments> arguments = Parse(words, &why);
  if (!arguments) return Complain(why, 2);
  if (arguments->help) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (arguments->version) {
    std::puts("virtbay-guest " VIRTBAY_VERSION);
    return 0;
  }
  const Report report = ReadReport(arguments->root);
  const std::string line = FormatJson(report);
  int status = 0;
  if (arguments->json || (!arguments->option && !arguments->target)) std::puts(line.c_str());
  if (arguments->option) status = PrintOption(report, arguments->device);
  if (arguments->target) {
    const Answer answer =
        Send(*arguments->target, line, std::chrono::seconds(arguments->timeout_seconds));
    if (!answer.ok) status = Complain(answer.text, 1);
  }
  return status;
}

// What is left of the output is written only now.
int Finish(int status) {
  errno = 0;
  const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (written || status != 0) return status;
  // Of a write that failed before, the reason is lost.
  return Complain(
      std::string("standard output: ") + (errno == 0 ? "cannot write" : std::strerror(errno)), 1);
}

}  // namespace
}  // namespace virtbay::guest_tool

int main(int argc, char** argv) {
  try {
    return virtbay::guest_tool::Finish(virtbay::guest_tool::Main(
        std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc)));
  } catch (const std::exception& error) {
    return virtbay::guest_tool::Complain(error.what(), 1);
  }
}
